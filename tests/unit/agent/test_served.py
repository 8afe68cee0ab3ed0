"""The retrospective model behind a server: a real one on a local port, which gives as many choices as it is told."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import Guesser, Vaults, vault_prompts
from transformers import AutoTokenizer

from retro import RetroAgent, RetrospectiveModel
from retro.agent.documents import read_trajectory
from retro.agent.loading import load_export
from retro.agent.records import ExportError, ExportRecord, RewardRecord, serve_command
from retro.cli.pipeline import next_commands
from retro.config import LoraSection, ModelSection
from retro.prompts import PromptTooLongError, load_prompts
from retro.retrospective.encoding import Encoder
from retro.retrospective.served import missing_begin, shares
from retro.training.export import config_overrides
from retro.types import Episode, Recalled, ReflectionRequest, Sampling, Split, Usage
from tests.unit.agent.choices_server import DOCUMENT, NAME, served

_CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


def played() -> Episode:
    """``DOCUMENT`` as an episode that recalled its memory."""
    episode, memory = read_trajectory(DOCUMENT)
    return replace(episode, recalled=Recalled.latest(memory or (), 3))


def encoder_of(export: Path) -> Encoder:
    section = ExportRecord.read(export).model
    return Encoder(load_prompts("household"), AutoTokenizer.from_pretrained(section.base), section)


def expected_prompt(export: Path) -> list[int]:
    """What the local model is asked about ``DOCUMENT``."""
    return encoder_of(export).prompt(played())


def test_all_candidates_come_from_one_request_that_asks_what_the_local_model_is_asked(served_export, server):
    reflected = served(served_export, server).reflect(DOCUMENT, n=5, seed=3)
    [asked] = server.asked
    assert server.paths == ["/v1/completions"] * 2
    assert {key: asked[key] for key in ("model", "n", "temperature", "top_p", "max_tokens")} == {
        "model": NAME,
        "n": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 8,
    }
    tokenizer = AutoTokenizer.from_pretrained(ExportRecord.read(served_export).base.name)
    assert tokenizer.encode(asked["prompt"]) == expected_prompt(served_export)
    assert "observation left out" in asked["prompt"]
    texts = [f"not {(asked['seed'] + place) % 8}" + " ." * (place % 3) for place in range(5)]
    assert [candidate.text for candidate in reflected.candidates] == texts
    assert [candidate.index for candidate in reflected.candidates] == list(range(5))
    assert {candidate.source for candidate in reflected.candidates} == {"export"}
    endings = [candidate.finish_reason for candidate in reflected.candidates]
    assert endings == ["stop", "stop", "length", "stop", "stop"]


def test_the_best_by_the_reward_model_here_is_kept(served_export, server):
    reflected = served(served_export, server).reflect(DOCUMENT, n=6)
    scorer = load_export(served_export, None, "cpu", None).scorer
    assert scorer is not None
    scores = asyncio.run(scorer(ReflectionRequest(played()), reflected.candidates))
    assert [candidate.score for candidate in reflected.candidates] == pytest.approx(scores, abs=1e-6)
    assert len(set(scores)) > 2
    assert reflected.score == max(candidate.score for candidate in reflected.candidates)


def test_the_prompt_costs_once_and_each_candidate_its_own_tokens(served_export, server):
    reflected = served(served_export, server).reflect(DOCUMENT, n=4)
    usages = [candidate.usage for candidate in reflected.candidates]
    assert {usage.prompt_tokens for usage in usages} == {77}
    assert [usage.completion_tokens for usage in usages] == [3, 4, 5, 3]  # 15, by 2, 3, 3 (cut: no end token) and 2
    server.usage = False
    untold = served(served_export, server).reflect(DOCUMENT, n=4).candidates
    assert [candidate.usage for candidate in untold] == [
        Usage(len(expected_prompt(served_export)), len(encoder_of(served_export).response(candidate)))
        for candidate in untold
    ]


@pytest.mark.parametrize(("most", "requests"), [(1, 8), (3, 6), (7, 2), (8, 1)])
def test_choices_that_a_server_does_not_give_are_asked_for_one_by_one(served_export, server, most, requests):
    server.most = most
    reflected = served(served_export, server).reflect(DOCUMENT, n=8)
    assert len(server.asked) == requests
    assert [candidate.index for candidate in reflected.candidates] == list(range(8))
    assert all("n" not in body for body in server.asked[1:])
    assert len({body["seed"] for body in server.asked}) == requests


def test_more_choices_than_asked_for_are_left(served_export, server):
    model = served(served_export, server)
    choices = [{"text": f"look {place}", "finish_reason": "stop"} for place in range(9)]
    server.reply = (200, json.dumps({"choices": choices}).encode())
    assert [candidate.text for candidate in model.reflect(DOCUMENT, n=2).candidates] == ["look 0", "look 1"]


def test_a_server_that_refuses_n_is_asked_for_one_at_a_time(served_export, server):
    server.refuses_n = True
    assert len(served(served_export, server).reflect(DOCUMENT, n=4).candidates) == 4
    assert len(server.asked) == 5


def test_the_same_seed_asks_the_same(served_export, server):
    model = served(served_export, server)
    first = model.reflect(DOCUMENT, n=3, seed=5)
    assert model.reflect(DOCUMENT, n=3, seed=5) == first
    assert model.reflect(DOCUMENT, n=3, seed=6) != first


def test_it_reflects_in_any_event_loop_and_many_times_at_once(served_export, server):
    model = served(served_export, server, scores=False)

    async def together():
        return await asyncio.gather(*(model.reflect_async(DOCUMENT, seed=seed) for seed in range(40)))

    async def notebook():
        return model.reflect(DOCUMENT, seed=7)

    texts = asyncio.run(together())
    assert texts[7] == asyncio.run(notebook()) == model.reflect(DOCUMENT, seed=7)
    assert len({reflected.text for reflected in texts}) > 3


@pytest.mark.parametrize("recorded", [True, None])
def test_a_base_with_a_chat_template_is_asked_in_a_chat(
    served_export, altered, server, tiny_model_dir, tmp_path, recorded
):
    base = tmp_path / "chat"
    shutil.copytree(tiny_model_dir, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(base)
    folder = altered(chat=recorded)
    served(folder, server, base=str(base)).reflect(DOCUMENT, n=3)
    [asked] = server.asked
    assert server.paths == ["/v1/chat/completions"] * 2
    [turn] = asked["messages"]
    assert turn["role"] == "user"
    assert tokenizer.encode(tokenizer.bos_token + turn["content"]) == expected_prompt(served_export)


def test_a_server_is_told_the_arguments_of_the_template_and_the_end_of_a_turn(
    served_export, altered, server, tiny_model_dir, tmp_path
):
    base = tmp_path / "chat"
    shutil.copytree(tiny_model_dir, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = _CHAT + "<pad>{% if enable_thinking is false %} look{% endif %}"
    tokenizer.save_pretrained(base)
    section = ExportRecord.read(served_export).model
    said = {"enable_thinking": False}
    folder = altered(chat=True, model=section.model_copy(update={"chat_template_kwargs": said}))
    served(folder, server, base=str(base)).reflect(DOCUMENT, n=1)
    [asked] = server.asked
    assert asked["chat_template_kwargs"] == said
    assert asked["stop_token_ids"] == [tokenizer.pad_token_id]  # what follows an answer in this template


def test_what_the_export_says_of_chats_comes_before_the_tokenizer(altered, server):
    served(altered(chat=True), server).reflect(DOCUMENT)
    assert server.paths == ["/v1/chat/completions"] * 2


@pytest.mark.parametrize("reward", [True, False])
def test_without_scores_no_model_is_needed_here(altered, server, tiny_model_dir, tmp_path, reward):
    tokenizer_alone = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tokenizer_alone)
    folder = altered(**{} if reward else {"reward": None})
    options = {"scores": False} if reward else {}
    model = served(folder, server, base=str(tokenizer_alone), **options)
    assert not model.has_reward_model
    reflected = model.reflect(DOCUMENT, n=8)
    assert (reflected.score, len(reflected.candidates)) == (None, 1)
    assert "n" not in server.asked[0]
    with pytest.raises(ExportError, match=r"lives on the base .*no-scores"):
        served(folder if reward else altered_again(folder), server, base=str(tokenizer_alone))


def altered_again(folder: Path) -> Path:
    """The export with its reward model back."""
    record = ExportRecord.read(folder).model_copy(update={"reward": RewardRecord(mean=0.0, std=1.0, loss="bce")})
    (folder / "retro.json").write_text(record.model_dump_json())
    return folder


def test_a_local_model_can_do_without_scores_too(served_export):
    model = RetrospectiveModel.load(served_export, device="cpu", scores=False)
    assert not model.has_reward_model


def test_an_agent_retries_with_what_the_server_wrote(served_export, server, tmp_path):
    model = served(served_export, server, prompts=vault_prompts(tmp_path), scores=False)
    agent = RetroAgent(Guesser(), Vaults(), model, sampling=Sampling(temperature=1.0, max_tokens=8), attempts=3)
    trees = agent.run_all(Vaults().tasks(Split.TEST, 12))
    reflections = [episode.reflection for episodes in trees for episode in episodes[1:]]
    assert len(reflections) > 5
    assert all(reflection.text.startswith("not ") and reflection.source == "export" for reflection in reflections)
    assert len(server.asked) == len(reflections)


def test_a_prompt_that_cannot_be_shortened_is_not_sent(altered, served_export, server):
    section = ExportRecord.read(served_export).model.model_copy(update={"max_prompt_tokens": 5})
    model = served(altered(model=section), server)
    with pytest.raises(PromptTooLongError, match=r"model\.max_prompt_tokens"):
        model.reflect(DOCUMENT)
    assert not server.asked


def test_the_serve_line_says_what_differs_from_the_base_as_it_is():
    plain = serve_command(ModelSection(base="org/base"), Path("runs/a/export/adapter"), "a-01234567")
    assert plain == (
        "vllm serve org/base --generation-config vllm --enable-lora --lora-modules a-01234567=runs/a/export/adapter"
    )
    section = ModelSection(base="my base", revision="v2", trust_remote_code=True, lora=LoraSection(r=40))
    command = serve_command(section, Path("x"), "a", {"rope_parameters": {"factor": 8.0}})
    assert command == (
        "vllm serve 'my base' --revision v2 --trust-remote-code "
        '--hf-overrides \'{"rope_parameters": {"factor": 8.0}}\' '
        "--generation-config vllm --enable-lora --max-lora-rank 64 --lora-modules a=x"
    )


def test_the_last_screen_tells_how_to_serve_the_export(served_export):
    commands = [command for _, command in next_commands(served_export.parent, "a.yaml")]
    base = ExportRecord.read(served_export).base.name
    served_with = (
        f"vllm serve {base} --generation-config vllm --enable-lora --lora-modules {NAME}={served_export / 'adapter'}"
    )
    assert served_with in commands
    without_export = [command for _, command in next_commands(served_export, "a.yaml")]
    assert not [command for command in without_export if "vllm" in command or "own_environment" in command]


def test_a_changed_rotary_scaling_is_exported_whole(tiny_model_dir):
    plain = ModelSection(base=str(tiny_model_dir))
    assert config_overrides(plain) == {}
    scaled = plain.model_copy(update={"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    rotary = config_overrides(scaled)["rope_parameters"]
    assert (rotary["rope_type"], rotary["factor"]) == ("linear", 4.0)
    assert rotary["rope_theta"] > 0


def test_the_begin_token_is_written_where_the_tokenizer_writes_none(tiny_model_dir):
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert missing_begin(tokenizer) == "<bos>"
    special = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=special)
    assert missing_begin(tokenizer) == ""
    tokenizer.bos_token = None
    assert missing_begin(tokenizer) == ""


@given(st.integers(0, 10_000), st.lists(st.integers(1, 500), min_size=1, max_size=32))
def test_shares_add_up_and_are_proportional(total, weights):
    parts = shares(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1
