"""Prompts: they grow by appending, are shortened by rule, and the actor's output is read back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.config import ConfigError, EnvironmentSection
from retro.prompts import (
    LEFT_OUT,
    MAX_ACTION_CHARS,
    MAX_THOUGHT_CHARS,
    PromptLibrary,
    PromptSet,
    PromptTooLongError,
    load_prompts,
    shipped,
)
from retro.types import Step, TokenLimit, Trajectory

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


SHOUT = "take " + "mug " * 800


def test_long_thoughts_and_actions_are_cut_where_observations_are_not_enough_the_oldest_first() -> None:
    _, said = HOUSEHOLD.parse(SHOUT + "!")
    steps = (*[Step(said, "nothing happens")] * 3, Step("go", LONG))
    whole = words(HOUSEHOLD.reflection(Trajectory("task: look", steps), 0.0, False, ()))
    seen = []
    for limit in range(whole, 0, -1):
        try:
            text = HOUSEHOLD.reflection(
                Trajectory("task: look", steps), 0.0, False, (), TokenLimit(words, limit, "model.max_prompt_tokens")
            )
        except PromptTooLongError as error:
            assert "every long thought and action cut" in str(error)
            break
        assert words(text) <= limit
        lengths = [len(line) for line in text.splitlines() if line.startswith("> take")]
        assert lengths == sorted(lengths)
        cuts = sum(length < 300 for length in lengths)
        assert not cuts or LONG not in text
        assert text.count("… [cut: 3,206 characters]") == 3  # what the actor wrote, not what was left of it
        seen.append(cuts)
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert limit < 3 * 65


def test_what_does_not_fit_even_so_is_an_error_with_the_remedy() -> None:
    trajectory = Trajectory("task: look", (Step("a", LONG), Step("b", LONG)))
    with pytest.raises(
        PromptTooLongError, match=r"2 steps takes \d+ tokens .* raise model\.max_prompt_tokens \(now 9 for"
    ):
        HOUSEHOLD.reflection(trajectory, 0.0, False, (), TokenLimit(words, 9, "model.max_prompt_tokens"))
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
    with pytest.raises(ConfigError, match=r"no prompts for environment 'attic': give environment\.prompts.*household"):
        load_prompts("attic")


def test_a_set_without_an_actor_prompt_can_be_trained_on_alone(tmp_path: Path) -> None:
    (tmp_path / "reflection.jinja").write_text("{{ opening }}")
    with pytest.raises(ConfigError, match="'logs' has no actor prompt: it can be trained on, not played"):
        PromptSet("logs", tmp_path).actor("question", (), ())


def react(folder: Path) -> PromptSet:
    (folder / "actor.jinja").write_text(
        "{{ opening }}\n{% for step in steps %}Thought {{ loop.index }}: {{ step.thought }}\n"
        "Action {{ loop.index }}: {{ step.action }}\nObservation {{ loop.index }}: {{ step.observation }}\n{% endfor %}"
        "Thought {{ steps|length + 1 }}:"
    )
    (folder / "prompts.yaml").write_text('format: react\nstop: ["\\nObservation"]\n')
    return PromptSet("reasons", folder)


@pytest.mark.parametrize(
    ("text", "thought", "action"),
    [
        (" It is hot.\nAction 1: open window 1\n", "It is hot.", "open window 1"),
        ("Thought 2: one.\ntwo.\nAction 2: Search[a: b]", "one.\ntwo.", "Search[a: b]"),
        ("on one line Action: go", "on one line", "go"),
        ("Action 3: go", "", "go"),
        ("an Action is what I need", "an Action is what I need", ""),
        ("so:\nAction 1: go\nAction 2: stay", "so:", "go\nAction 2: stay"),
        ("", "", ""),
    ],
)
def test_a_reasoning_actor_without_an_action_has_only_thought(
    tmp_path: Path, text: str, thought: str, action: str
) -> None:
    prompts = react(tmp_path)
    assert prompts.actor_stop == ("\nObservation",)
    assert prompts.parse(text) == (thought, action)


def test_what_an_actor_writes_is_cut_and_the_text_says_so(tmp_path: Path) -> None:
    assert HOUSEHOLD.parse("x" * 10_000) == ("", "x" * MAX_ACTION_CHARS + " … [cut: 10,000 characters]")
    thought, action = react(tmp_path).parse("y" * 10_000)
    assert thought == "y" * MAX_THOUGHT_CHARS + " … [cut: 10,000 characters]"
    assert action == ""


def test_the_actors_prompt_is_shortened_like_the_reflections() -> None:
    steps = (Step("a", LONG), Step("b", LONG), Step("c", "end"))
    whole = HOUSEHOLD.actor("task: look", steps, ())
    assert HOUSEHOLD.actor("task: look", steps, (), TokenLimit(words, words(whole))) == whole
    shorter = HOUSEHOLD.actor("task: look", steps, (), TokenLimit(words, words(whole) - 1))
    assert shorter == whole.replace(LONG, LEFT_OUT, 1)
    with pytest.raises(PromptTooLongError, match=r"3 steps takes \d+ tokens .* raise actor\.context_tokens"):
        HOUSEHOLD.actor("task: look", steps, (), TokenLimit(words, 3, "actor.context_tokens"))


def test_a_limit_counts_no_more_than_it_must() -> None:
    asked: list[str] = []

    def count(text: str) -> int:
        asked.append(text)
        return words(text) + 2

    limit = TokenLimit(count, 10)
    assert limit.fits("a b c d")
    assert limit.fits("a b c")
    assert asked == [""]
    assert limit.fits("one two three")
    assert not limit.fits("one two three four five six seven eight nine")
    assert len(asked) == 3


def test_the_prompts_of_a_config_are_its_own_for_its_environment_and_for_strangers(tmp_path: Path) -> None:
    react(tmp_path)
    library = PromptLibrary.from_section(EnvironmentSection(name="mine:Tasks", prompts=str(tmp_path)))
    assert library.of("mine").folder == tmp_path
    assert library.of("household") is HOUSEHOLD
    own = PromptLibrary.from_section(EnvironmentSection(name="household", prompts=str(tmp_path)))
    assert own.of("household").folder == tmp_path
    borrowed = PromptLibrary.from_section(EnvironmentSection(name="mine:Tasks", prompts="household"))
    assert borrowed.of("mine") is HOUSEHOLD
    before = library.digest(["mine", "household"])
    (tmp_path / "actor.jinja").write_text("other")
    assert library.digest(["mine", "household"]) != before


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("prompts.yaml", "fromat: react", "fromat"),
        ("prompts.yaml", "format: [", r"prompts\.yaml"),
        ("actor.jinja", "{% for %}", r"actor\.jinja"),
        ("actor.jinja", "{% include 'prompts.yaml' %}", r"actor\.jinja: line 1: it includes another file"),
        ("reflection.jinja", "{% extends base %}", r"reflection\.jinja: line 1: it includes another file"),
    ],
)
def test_a_broken_folder_is_named(tmp_path: Path, file: str, text: str, says: str) -> None:
    react(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=says):
        PromptSet("mine", tmp_path)


def test_templates_of_an_export_cannot_reach_into_python(tmp_path: Path) -> None:
    (tmp_path / "actor.jinja").write_text("{{ opening.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ConfigError, match="a str has no '__class__' in a template"):
        PromptSet("mine", tmp_path).actor("the opening", (), ())


def test_a_folder_without_templates_is_no_prompt_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither actor\.jinja nor reflection\.jinja"):
        PromptSet("mine", tmp_path)
    with pytest.raises(ConfigError, match=r"environment\.prompts: 'nowhere' is not a folder; shipped are: .*household"):
        PromptLibrary.from_section(EnvironmentSection(prompts="nowhere"))


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_set_can_be_played_and_trained_with(name: str) -> None:
    prompts = load_prompts(name)
    steps = [Step("first action", "first answer", thought="first thought"), Step("second", "then")]
    memory = ["what was learnt."]
    texts = [prompts.actor("THE OPENING", steps[:count], memory) for count in range(3)]
    for shorter, longer in pairwise(texts):
        assert longer.startswith(shorter)
    assert all(part in texts[1] for part in ("THE OPENING", "first action", "first answer", memory[0]))
    assert memory[0] not in prompts.actor("THE OPENING", steps, ())
    reflection = prompts.reflection(Trajectory("THE OPENING", tuple(steps)), 0.25, False, memory)
    assert all(part in reflection for part in ("THE OPENING", "first action", "then", memory[0]))
    assert reflection.lower().endswith("reflection:")
