"""Prompts: they grow by appending, are shortened by rule, and the actor's output is read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config import ConfigError
from retro.prompts import LEFT_OUT, PromptTooLongError, TokenLimit, load_prompts
from retro.types import Step, Trajectory

HOUSEHOLD = load_prompts("household")
STEPS = (
    Step("go to desk 1", "you see mug 1"),
    Step("take mug 1 from desk 1", "you take mug 1"),
    Step("go to shelf 1", "you see nothing"),
)


def words(text: str) -> int:
    return len(text.split())


def test_the_actors_prompt_grows_by_appending() -> None:
    prompts = [HOUSEHOLD.actor("places: desk 1\ntask: look", STEPS[:count], ["one.", "two."]) for count in range(4)]
    assert prompts[0] == "note: one.\nnote: two.\nplaces: desk 1\ntask: look\n>"
    for prompt, longer, step in zip(prompts, prompts[1:], STEPS, strict=False):
        assert longer == f"{prompt} {step.action}\n{step.observation}\n>"


def test_the_reflection_prompt_tells_all() -> None:
    text = HOUSEHOLD.reflection(Trajectory("task: look", STEPS[:1]), 1 / 3, False, ["be careful."])
    assert text == (
        "note: be careful.\ntask: look\n> go to desk 1\nyou see mug 1\nfailed, score 0.33\nreflection:"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        (" look \n", "", "look"),
        ("Thought: it is hot.\nAction: open window 1", "it is hot.", "open window 1"),
        ("Thought 3: one.\ntwo.\nAction 3: Search[a: b]\n", "one.\ntwo.", "Search[a: b]"),
        ("Thought: and no more", "", "Thought: and no more"),
        ("", "", ""),
    ],
)
def test_what_the_actor_says_is_read_as_thought_and_action(text: str, thought: str, action: str) -> None:
    assert HOUSEHOLD.parse(text) == (thought, action)


LONG = "you see " + "a great many things that nobody will ever need again and again"
"""Longer than what would stand in its place."""


def test_observations_are_left_out_the_oldest_first_until_it_fits() -> None:
    steps = (Step("a", LONG), Step("b", "short"), Step("c", LONG), Step("d", LONG))
    trajectory = Trajectory("task: look", steps)
    whole = HOUSEHOLD.reflection(trajectory, 0.0, False, ())
    for left_out, kept in ((0, 3), (1, 2), (2, 1), (3, 0)):
        saved = left_out * (words(LONG) - words(LEFT_OUT))
        text = HOUSEHOLD.reflection(trajectory, 0.0, False, (), TokenLimit(words, words(whole) - saved))
        assert (text.count(LEFT_OUT), text.count(LONG)) == (left_out, kept)
        assert "> b\nshort\n" in text
        if left_out and kept:
            assert text.rindex(LEFT_OUT) < text.index(LONG)


def test_what_does_not_fit_even_so_is_an_error_with_the_remedy() -> None:
    trajectory = Trajectory("task: look", (Step("a", LONG), Step("b", LONG)))
    with pytest.raises(
        PromptTooLongError, match=r"2 steps takes \d+ tokens .* raise model\.max_prompt_tokens \(now 9\)"
    ):
        HOUSEHOLD.reflection(trajectory, 0.0, False, (), TokenLimit(words, 9))
    with pytest.raises(PromptTooLongError):  # there is nothing to leave out
        HOUSEHOLD.reflection(Trajectory("task: look"), 0.0, False, (), TokenLimit(words, 2))


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(0, 300))
def test_no_more_is_left_out_than_needed(lengths: list[int], budget: int) -> None:
    """Of the long observations a beginning is left out; one fewer would not fit."""
    observations = [f"{number} " + "word " * length + "end" for number, length in enumerate(lengths)]
    trajectory = Trajectory("task: look", tuple(Step("go", observation) for observation in observations))
    limit = TokenLimit(words, budget)

    def without(places: list[int]) -> str:
        steps = [Step("go", LEFT_OUT if place in places else text) for place, text in enumerate(observations)]
        return HOUSEHOLD.reflection(Trajectory("task: look", tuple(steps)), 0.0, False, ())

    long = [place for place, text in enumerate(observations) if len(text) > len(LEFT_OUT)]
    fitting = [count for count in range(len(long) + 1) if words(without(long[:count])) <= budget]
    if fitting:
        assert HOUSEHOLD.reflection(trajectory, 0.0, False, (), limit) == without(long[: fitting[0]])
    else:
        with pytest.raises(PromptTooLongError):
            HOUSEHOLD.reflection(trajectory, 0.0, False, (), limit)


def test_an_environment_without_prompts_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no prompts for environment 'attic'; there are: .*household"):
        load_prompts("attic")
    with pytest.raises(ConfigError, match="'hotpotqa' has no actor prompt: it can be trained on, not played"):
        load_prompts("hotpotqa").actor("question", (), ())
