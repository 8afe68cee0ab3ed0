"""``memory.jinja``: what a bank recalls, in the words of an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro.config import ConfigError
from retro.envs import make_taskset
from retro.prompts import PromptSet, load_prompts
from retro.types import Recalled, RecalledEntries, Split

OPENING = "places: cabinet 2 desk 1 shelf 1 shelf 3 microwave 1 microwave 2\ntask: heat mug 1 and put it in shelf 1"


def recalled(*steps: str, text: str = "heat: …") -> RecalledEntries:
    return RecalledEntries((text, "be careful."), ("p1", "reflection-0"), ({"kind": "heat", "steps": [*steps]}, None))


def prompts(folder: Path, template: str | None) -> PromptSet:
    (folder / "actor.jinja").write_text("{{ memory|join('|') }}", encoding="utf-8")
    if template is not None:
        (folder / "memory.jinja").write_text(template, encoding="utf-8")
    return PromptSet("mine", folder)


def test_without_a_template_the_text_stays(tmp_path: Path) -> None:
    shown = prompts(tmp_path, None).worded(recalled("look"), OPENING)
    assert shown == Recalled(("heat: …", "be careful."), ("p1", "reflection-0"))
    assert type(shown) is Recalled


def test_an_entry_is_worded_and_a_reflection_on_the_task_itself_is_not(tmp_path: Path) -> None:
    own = prompts(tmp_path, "{{ kind }}/{{ steps|join(',') }}/{{ text }}/{{ opening|length }}")
    shown = own.worded(recalled("look", "go"), "abc")
    assert shown.entries == ("heat/look,go/heat: …/3", "be careful.")


def test_an_entry_of_which_nothing_is_written_is_left_out_with_its_id(tmp_path: Path) -> None:
    assert prompts(tmp_path, "{% if false %}x{% endif %}\n").worded(recalled(), "").ids == ("reflection-0",)
    empty = Recalled(("",), ("reflection-0",))
    assert prompts(tmp_path, "x").worded(empty, "") == empty


def test_a_template_that_fails_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory\.jinja: line 1"):
        prompts(tmp_path, "{{ steps.pop() }}").worded(recalled("look"), "")


def test_text_of_an_entry_is_never_read_as_a_template(tmp_path: Path) -> None:
    hostile = "{{ 7 * 7 }}{% for x in range(9) %}{% endfor %}"
    assert prompts(tmp_path, "{{ text }}").worded(recalled(text=hostile), "").entries[0] == hostile


def test_another_template_is_another_digest(tmp_path: Path) -> None:
    assert prompts(tmp_path, "a").digest != prompts(tmp_path, "b").digest


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (("go to <shelf>", "take <mug> from <shelf>"), "try shelf 1 shelf 3."),
        (("take <mug> from <desk>", "heat <mug> with <microwave>"), "remember to heat it. try desk 1."),
        (("heat <egg> with <microwave>",), "remember to heat it."),
        (("cool <mug> with <fridge>",), ""),
        (("take <apple> from <shelf>",), ""),
        (("take <mug> from <drawer>",), ""),
        (("take", "go to", "look"), ""),
    ],
)
def test_the_household_words_a_procedure_as_a_note_about_this_room(steps: tuple[str, ...], words: str) -> None:
    shown = load_prompts("household").worded(recalled(*steps), OPENING)
    assert shown.entries == ((words, "be careful.") if words else ("be careful.",))


def test_the_households_template_fails_for_no_opening() -> None:
    load_prompts("household").worded(recalled("take <mug> from <shelf>", "cool it", "heat"), "A room.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mug 1 is in desk 1.", "mug 1 is in desk 1."),
        ("remember to heat it. try again.", "remember to heat it. try again."),
        ("mug 1 is in shelf 2. try shelf 3.", "try shelf 3."),
        ("mug 2 is in desk 1.", ""),
        ("use the stove.", "use the stove."),
        ("nothing in desk 1 shelf 1. microwave 1 is broken. use microwave 2. i went to desk 1.", ""),
        ("> go to desk 9\nyou see nothing", "> go to desk 9\nyou see nothing"),
    ],
)
def test_the_household_leaves_out_sentences_about_other_rooms(text: str, words: str) -> None:
    shown = load_prompts("household").worded(recalled(text=text), OPENING)
    assert shown.entries == ((words, "be careful.") if words else ("be careful.",))


def test_the_openings_are_those_of_the_household() -> None:
    taskset = make_taskset("household")
    openings = [taskset.make(task).reset()[0] for task in taskset.tasks(Split.TRAIN, 30)]
    thing = ("take <mug> from <cabinet>", "heat <mug> with <microwave>")
    shown = [load_prompts("household").worded(recalled(*thing), opening).entries[0] for opening in openings]
    heated = [text for text, opening in zip(shown, openings, strict=True) if "task: heat" in opening]
    assert heated and all(text.startswith("remember to heat it.") for text in heated)


def test_as_many_facts_as_entries() -> None:
    with pytest.raises(ValueError, match="2 entries with the facts of 1"):
        RecalledEntries(("a", "b"), ("1", "2"), (None,))
