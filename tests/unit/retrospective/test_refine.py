"""Rewriting: what is kept, when it ends, what it costs, and what the model is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from retro.config import ConfigError, SamplerSection, build, parse_section
from retro.prompts import PromptSet, PromptTooLongError, load_prompts
from retro.retrospective.samplers.refine import Refine
from retro.types import (
    Episode,
    Reflection,
    ReflectionRequest,
    Split,
    Step,
    StopReason,
    Task,
    TokenLimit,
    Trajectory,
    Usage,
)

EPISODE = Episode("e", Task("vault", "1", Split.TEST), 0, Trajectory("?"), 0.0, False, StopReason.FAILURE)
TRAJECTORY = Trajectory("task: look", (Step("go", "word " * 40), Step("look", "a mug")))


class Counting:
    """Writes 10, 20, …; each rewriting adds 1. It costs 100 tokens to read and 5 to write, or 7 for another text."""

    def __init__(self, room: int = 99) -> None:
        self.room = room
        self.seeds: list[int] = []

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        return [
            Reflection(str(10 * (index + 1)), "counting", index, usage=Usage(100, 5)) for index in range(request.count)
        ]

    async def revise(self, request: ReflectionRequest, draft: Reflection) -> tuple[Reflection, Usage]:
        if int(draft.text) % 10 == self.room:
            raise PromptTooLongError("too long")
        self.seeds.append(request.seed)
        return Reflection(str(int(draft.text) + 1), "counting", usage=Usage(120, 7)), Usage(230, 17)


class Peak:
    """Scores a number by how near its last digit is to ``top``."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.scored: list[Reflection] = []

    async def __call__(self, request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
        self.scored += reflections
        return [-abs(int(reflection.text) % 10 - self.top) for reflection in reflections]


def refined(sampler: Refine, count: int = 1) -> list[Reflection]:
    return asyncio.run(sampler.reflect(ReflectionRequest(EPISODE, count, seed=3)))


def test_without_a_reward_model_the_last_text_is_kept() -> None:
    kept = refined(Refine(Counting(), None, 3), 2)
    assert [(one.text, one.index, one.score) for one in kept] == [("13", 0, None), ("23", 1, None)]
    assert [one.usage for one in kept] == [Usage(100 + 3 * 230, 5 + 3 * 17)] * 2


def test_it_ends_where_the_score_stops_rising_and_keeps_the_best() -> None:
    scorer = Peak(1)
    policy = Counting()
    [kept] = refined(Refine(policy, scorer, 3))
    assert (kept.text, kept.score) == ("11", 0)
    assert kept.usage == Usage(100 + 2 * 230, 5 + 2 * 17), "the one that was left out was paid for, too"
    assert [(one.text, one.index, one.usage) for one in scorer.scored] == [
        ("10", 0, Usage(100, 5)),
        ("11", 0, Usage(100, 7)),
        ("12", 0, Usage(100, 7)),
    ], "the reward model reads the prompt about the episode"
    assert refined(Refine(Counting(), Peak(9), 3))[0].text == "13"
    assert refined(Refine(Counting(), Peak(0), 3))[0].text == "10"


def test_each_round_has_its_own_seed_and_equal_seeds_draw_alike() -> None:
    first, second = Counting(), Counting()
    assert refined(Refine(first, None, 3), 2) == refined(Refine(second, None, 3), 2)
    assert first.seeds == second.seeds and len(set(first.seeds)) == 6


def test_what_does_not_fit_into_the_next_round_stays_as_it_is() -> None:
    [kept] = refined(Refine(Counting(room=1), None, 3))
    assert (kept.text, kept.usage) == ("11", Usage(330, 22))


def test_a_policy_that_cannot_rewrite_is_named() -> None:
    class Plain:
        async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
            return []

    section = parse_section(SamplerSection, {"kind": "refine", "rounds": 2})
    sampler = build(section, policy=Plain(), scorer=None)
    assert sampler.rounds == 2
    with pytest.raises(ConfigError, match="Plain has no method revise"):
        refined(sampler)


def test_a_model_with_a_language_of_its_own_is_not_asked_for_criticism() -> None:
    prompts = load_prompts("household")
    assert not prompts.revising.criticises
    with pytest.raises(ValueError, match=r"critique\.jinja"):
        prompts.revising.critique("p", "d")
    plain = prompts.reflection(TRAJECTORY, 0.0, False, ())
    assert prompts.revising.revision(plain, "look .", "") == f"note: look .\n{plain}"


def test_other_prompts_share_a_critique_and_a_revision_unless_their_folder_has_its_own(tmp_path: Path) -> None:
    shared = load_prompts("alfworld").revising
    assert shared.digest == load_prompts("webshop").revising.digest != load_prompts("household").revising.digest
    assert shared.critique("PROMPT", "DRAFT").startswith("PROMPT DRAFT\n")
    assert "of this reflection: WRONG" in shared.revision("PROMPT", "DRAFT", "WRONG")
    assert "Criticism" not in shared.revision("PROMPT", "DRAFT", "")
    (tmp_path / "reflection.jinja").write_text("{{ opening }}")
    assert PromptSet("own", tmp_path).revising.digest == shared.digest
    assert PromptSet("household", tmp_path).revising.digest == load_prompts("household").revising.digest
    before = PromptSet("own", tmp_path).digest
    (tmp_path / "revision.jinja").write_text("{{ draft }} again: {{ prompt }}")
    own = PromptSet("own", tmp_path)
    assert own.revising.revision("PROMPT", "DRAFT", "") == "DRAFT again: PROMPT"
    assert not own.revising.criticises
    assert own.digest == before, "no stage but the evaluation of such an arm depends on it"


def test_the_limit_holds_for_the_whole_prompt() -> None:
    prompts = load_prompts("household")
    draft = "look . " * 10

    def rewritten(prompt: str) -> str:
        return prompts.revising.revision(prompt, draft, "")

    limit = TokenLimit(lambda text: len(text.split()), 45, "model.max_prompt_tokens")
    text = prompts.reflection(TRAJECTORY, 0.0, False, (), limit, rewritten)
    assert "observation left out" in text and draft in text
    assert limit.fits(text)
    with pytest.raises(PromptTooLongError):
        prompts.reflection(TRAJECTORY, 0.0, False, (), TokenLimit(limit.count, 25), rewritten)
