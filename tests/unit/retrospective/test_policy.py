"""Reflections and scores of real (tiny, random) models on one shared base."""

import asyncio
from dataclasses import replace

import pytest
import torch

from retro.config import LoraSection, ModelSection
from retro.envs import make_taskset
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead
from retro.prompts import PromptTooLongError, load_prompts
from retro.retrospective.drafting import Draft, DraftingReflector, has_sentence_end
from retro.retrospective.encoding import Encoder
from retro.retrospective.generator import EngineGenerator, PrefixKeeper
from retro.retrospective.policy import Policy
from retro.retrospective.revising import RevisingReflector
from retro.retrospective.reward_model import RewardModel, RewardScorer
from retro.retrospective.samplers.backtrack import Backtrack, BacktrackOptions
from retro.retrospective.samplers.best_of import BestOf
from retro.types import (
    Episode,
    Recalled,
    Reflection,
    ReflectionRequest,
    Reflector,
    Split,
    Step,
    StopReason,
    Trajectory,
    Usage,
)

PROMPTS = load_prompts("household")


def failed_episode(number: int, actions: int = 3) -> Episode:
    taskset = make_taskset("household")
    task = taskset.tasks(Split.TRAIN, 1, number)[0]
    environment = taskset.make(task)
    opening, _ = environment.reset()
    steps = []
    for action in ("look", "inventory", "look")[:actions]:
        observation, reward, *_ = environment.step(action)
        steps.append(Step(action, observation, reward))
    return Episode(f"e{number}", task, 0, Trajectory(opening, tuple(steps)), 0.0, False, StopReason.HORIZON)


def recalling(episode: Episode, *entries: str) -> Episode:
    return replace(episode, recalled=Recalled.latest(entries, len(entries)))


REQUESTS = [
    ReflectionRequest(failed_episode(0), 4, seed=1),
    ReflectionRequest(recalling(failed_episode(1, 1), "look ."), 4, seed=2),
    ReflectionRequest(recalling(failed_episode(2), "look .", "take mug 1 ."), 2, seed=3),
]


@pytest.fixture(scope="module")
def section(tiny_model_dir):
    return ModelSection(base=str(tiny_model_dir), max_prompt_tokens=512, max_new_tokens=12, lora=LoraSection(r=2))


@pytest.fixture(scope="module")
def base(section):
    shared = SharedBase.load(section, torch.device("cpu"))
    for number, role in enumerate(("policy", "reward")):
        shared.add_role(role, section.lora, seed=1)
        with torch.no_grad():  # LoRA begins as nothing: here it is something
            generator = torch.Generator().manual_seed(number)
            for name, weight in shared.model.named_parameters():
                if role in name and "lora_B" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return shared


def reflect(reflector: Reflector, requests=REQUESTS) -> list[list[Reflection]]:
    async def together():
        return await asyncio.gather(*(reflector.reflect(request) for request in requests))

    return asyncio.run(together())


def test_reflections_in_order_each_with_its_source_usage_and_ending(base, section):
    reflector = Policy.on(base, "policy", PROMPTS, section, "ppo")
    assert isinstance(reflector, Reflector)
    for request, group in zip(REQUESTS, reflect(reflector), strict=True):
        asked = Encoder(PROMPTS, base.tokenizer, section).prompt(request.episode)
        assert [reflection.index for reflection in group] == list(range(request.count))
        assert {reflection.source for reflection in group} == {"ppo"}
        for reflection in group:
            assert reflection.usage.prompt_tokens == len(asked)
            assert 0 < reflection.usage.completion_tokens <= section.max_new_tokens
            cut = reflection.finish_reason == "length"
            assert not cut or reflection.usage.completion_tokens == section.max_new_tokens
        assert len({reflection.text for reflection in group}) > 1


def test_what_is_drawn_depends_on_the_request_alone(base, section):
    reflector = Policy.on(base, "policy", PROMPTS, section, "ppo")
    together = reflect(reflector)
    assert together == [reflect(reflector, [request])[0] for request in REQUESTS]
    assert together == reflect(reflector, REQUESTS[::-1])[::-1]
    more = reflect(reflector, [replace(REQUESTS[2], count=5)])[0]
    assert more[:2] == together[2], "the first of many are the many of few"
    assert reflect(reflector, [replace(REQUESTS[0], seed=9)])[0] != together[0]


def test_each_role_writes_its_own_and_none_is_the_base(base, section):
    texts = {
        role: [r.text for group in reflect(Policy.on(base, role, PROMPTS, section, "x")) for r in group]
        for role in ("policy", "reward", None)
    }
    assert texts["policy"] != texts[None] != texts["reward"] != texts["policy"]


def test_scores_are_those_of_each_reflection_alone(base, section):
    head = ScalarHead(base.hidden_size, seed=3)
    encoder = Encoder(PROMPTS, base.tokenizer, section)
    scorer = RewardScorer(encoder, RewardModel(base, head))
    groups = reflect(Policy.on(base, "policy", PROMPTS, section, "ppo"))

    async def together():
        return await asyncio.gather(*(scorer(*pair) for pair in zip(REQUESTS, groups, strict=True)))

    for request, group, scores in zip(REQUESTS, groups, asyncio.run(together()), strict=True):
        prompt = encoder.prompt(request.episode)
        for reflection, score in zip(group, scores, strict=True):
            ids = torch.tensor([prompt + encoder.response(reflection)])
            with base.role("reward"), torch.no_grad():
                hidden = base.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]  # (1, T, H)
                alone = head(hidden[:, -1]).item()
            assert score == pytest.approx(alone, abs=1e-4)
        assert len(set(scores)) > 1


def test_best_of_n_on_real_models_keeps_the_highest_score(base, section):
    model = RewardModel(base, ScalarHead(base.hidden_size, seed=3))
    scorer = RewardScorer(Encoder(PROMPTS, base.tokenizer, section), model)
    best = BestOf(Policy.on(base, "policy", PROMPTS, section, "ppo"), scorer, 8)
    request = replace(REQUESTS[0], count=1)
    kept = asyncio.run(best.reflect(request))
    candidates = asyncio.run(best.candidates(request))
    assert len(kept) == 1
    assert kept[0].score == max(candidate.score for candidate in candidates)
    assert kept == asyncio.run(best.reflect(request))


class Forgetful:
    """The engine without its memory of prompts."""

    def __init__(self, base):
        engine = EngineGenerator(base)
        self.use, self.sample = engine.use, engine.sample


def test_sentences_are_drawn_alike_with_and_without_a_memory_of_the_prompt_which_costs_less(base, section):
    async def sentences(policy):
        with policy.drafting(REQUESTS[0]) as drafting:
            drafts, usage = await drafting.extend(Draft(), 6, seed=4)
            going = [draft for draft in drafts if draft.finish_reason is None]
            longer, more = await drafting.extend(going[0], 3, seed=5)
            others, rest = await drafting.extend(going[-1], 3, seed=5)
        return [*drafts, *longer, *others], [usage, more, rest], going

    engine, forgetful = EngineGenerator(base), Forgetful(base)
    assert isinstance(engine, PrefixKeeper) and not isinstance(forgetful, PrefixKeeper)
    policies = [Policy.on(base, "policy", PROMPTS, section, "ppo", one) for one in (engine, forgetful)]
    assert isinstance(policies[0], DraftingReflector)
    (drafts, kept, going), (same, again, _) = (asyncio.run(sentences(policy)) for policy in policies)
    assert drafts == same
    prompt = len(Encoder(PROMPTS, base.tokenizer, section).prompt(REQUESTS[0].episode))
    lengths = [0, len(going[0].ids), len(going[-1].ids)]
    assert [usage.prompt_tokens for usage in again] == [prompt + length for length in lengths]
    assert kept[0] == again[0]
    assert kept[1].prompt_tokens == lengths[1], "only the sentence"
    assert kept[2].prompt_tokens <= lengths[2]
    assert [usage.completion_tokens for usage in kept] == [usage.completion_tokens for usage in again]
    for draft in drafts:
        assert base.tokenizer.decode(draft.ids, skip_special_tokens=True) == draft.text
        assert len(draft.ids) <= section.max_new_tokens
        assert draft.finish_reason or has_sentence_end(draft.text)
        assert (draft.finish_reason == "length") <= (len(draft.ids) == section.max_new_tokens)
    assert not engine._engine.sessions._known, "the prompt is forgotten at the end"


def test_backtracking_on_real_models_keeps_a_reflection_with_its_own_score(base, section):
    scorer = RewardScorer(
        Encoder(PROMPTS, base.tokenizer, section), RewardModel(base, ScalarHead(base.hidden_size, seed=3))
    )
    policy = Policy.on(base, "policy", PROMPTS, section, "ppo")
    requests = [replace(request, count=2) for request in REQUESTS[:2]]
    for mode in ("fast", "exact"):
        sampler = Backtrack(policy, scorer, BacktrackOptions(mode=mode, drafts=2, expansions=3, steps=16))
        groups = reflect(sampler, requests)
        alone = reflect(sampler, requests[:1])[0]
        assert [(one.text, one.usage) for one in alone] == [(one.text, one.usage) for one in groups[0]]
        for request, group in zip(requests, groups, strict=True):
            scores = asyncio.run(scorer(request, group))
            assert [one.score for one in group] == pytest.approx(scores, abs=1e-4)
            assert [one.index for one in group] == [0, 1]


def test_a_reflection_is_rewritten_by_the_model_that_wrote_it(base, section):
    policy = Policy.on(base, "policy", PROMPTS, section, "ppo")
    encoder = Encoder(PROMPTS, base.tokenizer, section)
    [draft] = asyncio.run(policy.reflect(replace(REQUESTS[0], count=1)))
    revised, usage = asyncio.run(policy.revise(REQUESTS[0], draft))
    asked = encoder.text(REQUESTS[0].episode, lambda prompt: f"note: {draft.text}\n{prompt}")
    assert usage == revised.usage == Usage(len(encoder.encode(asked)), revised.usage.completion_tokens)
    assert revised.source == "ppo"
    assert (revised, usage) == asyncio.run(policy.revise(REQUESTS[0], draft))
    assert isinstance(policy, RevisingReflector)


def test_a_cut_reflection_has_no_end_token(base, section):
    encoder = Encoder(PROMPTS, base.tokenizer, section)
    whole = Reflection("look .", "x")
    cut = Reflection("look .", "x", finish_reason="length")
    end = base.tokenizer.eos_token_id
    assert encoder.response(whole) == [*encoder.response(cut), end]


def test_a_request_that_is_too_long_fails_alone(base, section):
    episode = failed_episode(3)
    long = replace(episode, trajectory=replace(episode.trajectory, opening="look . " * 600))
    reflector = Policy.on(base, "policy", PROMPTS, section, "ppo")

    async def together():
        requests = [*REQUESTS, ReflectionRequest(long, 4, seed=9)]
        return await asyncio.gather(*map(reflector.reflect, requests), return_exceptions=True)

    *written, error = asyncio.run(together())
    assert isinstance(error, PromptTooLongError)
    assert written == reflect(Policy.on(base, "policy", PROMPTS, section, "ppo"))


def test_prompts_keep_to_the_limit_and_the_error_names_the_key(base, section):
    episode = failed_episode(0)
    steps = [replace(step, observation="you see mug 1 . " * 20) for step in episode.trajectory.steps]
    episode = replace(episode, trajectory=Trajectory(episode.trajectory.opening, tuple(steps)))
    whole = Encoder(PROMPTS, base.tokenizer, section).prompt(episode)
    shorter = section.model_copy(update={"max_prompt_tokens": len(whole) - 1})
    assert len(Encoder(PROMPTS, base.tokenizer, shorter).prompt(episode)) < len(whole)
    impossible = section.model_copy(update={"max_prompt_tokens": 5})
    with pytest.raises(PromptTooLongError, match=r"model\.max_prompt_tokens"):
        asyncio.run(Policy.on(base, "policy", PROMPTS, impossible, "x").reflect(REQUESTS[0]))
