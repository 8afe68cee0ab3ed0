"""The local actor: one batch a round, whatever the timing; sessions; stop strings; prompts that are too long."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from retro.actors.local import LocalActor, LocalOptions
from retro.actors.openai import OpenAIOptions
from retro.config import ConfigError, LoraSection, ModelSection
from retro.models.adapter_files import AdapterError
from retro.models.adapters import SharedBase
from retro.prompts import PromptTooLongError
from retro.types import Actor, Completion, Sampling, derive_seed

OPENING = "places: cabinet 1 cabinet 2 desk 1 drawer 1 drawer 2 shelf 1\ntask: put mug 1 in desk 1\n>"


@pytest.fixture
def actor(tiny_model_dir: Path) -> LocalActor:
    made = LocalActor.from_options(LocalOptions(model=str(tiny_model_dir)), "cpu")
    assert isinstance(made, LocalActor)
    assert isinstance(made, Actor)
    return made


async def play(actor: Actor, number: int, jitter: random.Random | None = None) -> list[Completion]:
    """An episode of a few turns, each prompt appended to the one before."""
    prompt, answers = OPENING, []
    for turn in range(2 + number % 3):
        for _ in range(jitter.randrange(5) if jitter else 0):
            await asyncio.sleep(0)
        sampling = Sampling(1.0, max_tokens=6, stop=("\n",), seed=derive_seed(number, turn), session=f"e{number}")
        answers.append(await actor.complete(prompt, sampling))
        prompt += f" {answers[-1].text}\nnothing happens\n>"
    return answers


def together(actor: Actor, numbers: list[int], jitter: random.Random | None = None) -> list[list[Completion]]:
    async def all_of_them() -> list[list[Completion]]:
        return await asyncio.gather(*(play(actor, number, jitter) for number in numbers))

    return asyncio.run(all_of_them())


def test_answers_do_not_depend_on_company_or_timing(actor: LocalActor, tiny_model_dir: Path) -> None:
    expected = together(actor, list(range(9)))
    options = LocalOptions(model=str(tiny_model_dir))
    alone = [together(LocalActor.from_options(options, "cpu"), [number])[0] for number in range(9)]
    assert expected == alone
    order = [8, 3, 5, 0, 1, 7, 2, 6, 4]
    small = LocalActor.from_options(LocalOptions(model=str(tiny_model_dir), concurrency=4), "cpu")
    jittered = together(small, order, random.Random(1))
    assert [jittered[order.index(number)] for number in range(9)] == expected
    assert len({completion.text for episode in expected for completion in episode}) > 9


def test_the_text_ends_before_the_stop_string(actor: LocalActor) -> None:
    free = asyncio.run(actor.complete(OPENING, Sampling(1.0, max_tokens=40, seed=5)))
    stop = free.text.split()[3]
    cut = asyncio.run(actor.complete(OPENING, Sampling(1.0, max_tokens=40, seed=5, stop=(stop,))))
    assert cut.finish_reason == "stop"
    assert cut.text == free.text[: free.text.index(stop)].strip()
    assert cut.usage.prompt_tokens == free.usage.prompt_tokens
    assert 0 < cut.usage.completion_tokens < 40


def test_a_prompt_that_is_too_long_ends_its_own_episode_alone(actor: LocalActor) -> None:
    async def both() -> list[Completion | BaseException]:
        calls = [actor.complete(prompt, Sampling(max_tokens=4)) for prompt in (OPENING, "look " * 2000)]
        return await asyncio.gather(*calls, return_exceptions=True)

    fine, long = asyncio.run(both())
    assert isinstance(fine, Completion)
    assert isinstance(long, PromptTooLongError)
    assert "2001 tokens" in str(long)


def test_messages_are_joined_without_a_chat_template(actor: LocalActor) -> None:
    sampling = Sampling(max_tokens=4)
    messages = asyncio.run(actor.complete([{"role": "user", "content": OPENING}], sampling))
    assert messages == asyncio.run(actor.complete(OPENING, sampling))


def test_greedy_answers_are_those_of_generate(actor: LocalActor, tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(OPENING, add_special_tokens=False)]
    output = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=5)[0, len(ids) :]
    answer = asyncio.run(actor.complete(OPENING, Sampling(max_tokens=5)))
    assert answer.text == tokenizer.decode(output, skip_special_tokens=True).strip()


def test_a_prompt_may_cost_what_the_context_leaves_beside_the_answer(tiny_model_dir: Path) -> None:
    made = LocalActor.from_options(LocalOptions(model=str(tiny_model_dir), max_tokens=24), "cpu")
    assert isinstance(made, LocalActor)
    assert made.prompt_limit is not None
    assert (made.prompt_limit.max_tokens, made.prompt_limit.key) == (1024 - 24, "actor.context_tokens")
    assert made.prompt_limit.count("look\nlook") == 4  # with the begin token
    own = LocalActor.from_options(LocalOptions(model=str(tiny_model_dir), max_tokens=24, context_tokens=200), "cpu")
    assert isinstance(own, LocalActor)
    assert own.prompt_limit is not None
    assert own.prompt_limit.max_tokens == 176
    with pytest.raises(ConfigError, match=r"actor\.max_tokens=1024 leaves nothing of a context of 1024 tokens"):
        LocalActor.from_options(LocalOptions(model=str(tiny_model_dir), max_tokens=1024), "cpu")


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    base = SharedBase.load(ModelSection(base=str(tiny_model_dir)), "cpu")
    base.add_role("policy", LoraSection(r=4, alpha=64), seed=1)
    with torch.no_grad():
        for weight in base.role_parameters("policy").values():
            weight.add_(0.3)
    base.save_role("policy", tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_actor_can_have_an_adapter(tiny_model_dir: Path, adapter: Path, quantization: Any) -> None:
    if quantization == "nf4":
        pytest.importorskip("bitsandbytes")
    section = LocalOptions(model=str(tiny_model_dir), quantization=quantization)
    plain = together(LocalActor.from_options(section, "cpu"), [0, 1])
    with_adapter = section.model_copy(update={"adapter": str(adapter)})
    adapted = together(LocalActor.from_options(with_adapter, "cpu"), [0, 1])
    assert adapted != plain
    assert adapted == together(LocalActor.from_options(with_adapter, "cpu"), [0, 1])


def test_an_adapter_that_is_none_is_named(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=str(tmp_path)):
        LocalActor.from_options(LocalOptions(model=str(tiny_model_dir), adapter=str(tmp_path)), "cpu")


def test_the_chat_template_is_rendered_with_the_arguments_of_the_config(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The prompt that is answered, and its length, are those of the rendered template."""
    folder = tmp_path / "chat"
    shutil.copytree(tiny_model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is false %} look look look{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    found = []
    for chosen in ({}, {"enable_thinking": False}):
        actor = LocalActor.from_options(LocalOptions(model=str(folder), chat_template_kwargs=chosen), "cpu")
        found.append(asyncio.run(actor.complete("desk 1", Sampling(max_tokens=4))))
        assert actor.prompt_limit is not None
        assert actor.prompt_limit.count("desk 1") == found[-1].usage.prompt_tokens
    assert [answer.usage.prompt_tokens for answer in found] == [1, 4]


def test_an_openai_actor_is_told_where_its_template_arguments_belong() -> None:
    with pytest.raises(ValueError, match=r"extra_body=\{chat_template_kwargs: \{'enable_thinking': False\}\}"):
        OpenAIOptions(chat_template_kwargs={"enable_thinking": False})


async def held(actor: LocalActor, number: int, jitter: random.Random) -> list[Completion]:
    """An episode that says when it begins and ends, as the loop's do."""
    await asyncio.sleep(0)
    with actor.conversation(f"e{number}"):
        return await play(actor, number, jitter)


@pytest.mark.parametrize("kib", [1, 100, 260])
def test_with_little_room_episodes_wait_and_answer_the_same(tiny_model_dir: Path, kib: int) -> None:
    """With room for none, for two, for some of nine: none hangs, with or without an end that is told."""
    options = LocalOptions(model=str(tiny_model_dir))
    expected = together(LocalActor.from_options(options, "cpu"), list(range(9)))
    small = LocalActor.from_options(options.model_copy(update={"cache_gib": kib / 2**20}), "cpu")
    jitter = random.Random(kib)

    async def all_of_them() -> list[list[Completion]]:
        some = [held(small, number, jitter) if number % 3 else play(small, number, jitter) for number in range(9)]
        return await asyncio.wait_for(asyncio.gather(*some), 120)

    assert asyncio.run(all_of_them()) == expected


def test_an_episode_that_fails_gives_its_room_back(tiny_model_dir: Path) -> None:
    actor = LocalActor.from_options(LocalOptions(model=str(tiny_model_dir), cache_gib=40 / 2**20), "cpu")

    async def broken() -> None:
        with actor.conversation("e0"):
            await play(actor, 0)
            raise ValueError("the environment broke")

    async def both() -> list[Any]:
        return await asyncio.wait_for(
            asyncio.gather(broken(), held(actor, 1, random.Random(0)), return_exceptions=True), 60
        )

    failed, answered = asyncio.run(both())
    assert isinstance(failed, ValueError)
    assert len(answered) == 3
