"""The nearest solved trajectory, verbatim."""

from __future__ import annotations

from dataclasses import replace

from retro.memory.trajectories import verbatim
from retro.types import Step, Trajectory
from tests.unit.memory.plays import ask, folded, memory_section, opening, play, task

SECTION = memory_section("trajectories")


def test_the_nearest_task_is_shown_word_by_word() -> None:
    memory = folded(SECTION, play(task("a"), thing="mug", id="A"), play(task("b", "clean"), thing="plate", id="B"))
    shown = memory.recall(ask("heat", "mug"))
    assert shown.ids == ("A",)
    body = f"{opening('heat', 'mug')}\n> look\nok\n> take it\nok"
    assert shown.entries == (f"Another task that was solved:\n{body}",)
    assert memory.recall(ask("clean", "plate")).ids == ("B",)


def test_several_are_shown_with_the_nearest_last() -> None:
    plays = [play(task("a"), thing="mug", id="A"), play(task("b"), thing="cup", id="B")]
    memory = folded(memory_section("trajectories", count=2), *plays, play(task("c", "clean"), thing="egg", id="C"))
    assert memory.recall(ask("heat", "mug")).ids == ("B", "A")


def test_a_task_keeps_its_best_play_whatever_comes_first() -> None:
    plays = [
        play(task("a"), actions=("look",) * 3, id="short"),
        play(task("a"), actions=("look",) * 9, id="long"),
        play(task("a"), actions=("look",), success=False, id="failed"),
        replace(play(task("a"), actions=("look",) * 2, id="poor"), return_=0.9),
    ]
    for order in (plays, plays[::-1]):
        assert folded(SECTION, *order).recall(ask("heat")).ids == ("short",)


def test_what_is_too_long_is_not_learnt() -> None:
    long = play(task("a"), actions=("look " * 900,))
    memory = folded(SECTION, long)
    assert memory.recall(ask("heat")).entries == ()
    assert folded(memory_section("trajectories", max_tokens=2_000), long).recall(ask("heat")).entries


def test_a_success_without_steps_shows_nothing() -> None:
    assert folded(SECTION, play(task("a"), actions=())).recall(ask("heat")).entries == ()


def test_which_tasks_stay_does_not_depend_on_the_order() -> None:
    plays = [play(task(f"t{number}"), id=str(number)) for number in range(30)]
    section = memory_section("trajectories", capacity=5)
    digests = {folded(section, *order).digest for order in (plays, plays[::-1], plays[7:] + plays[:7])}
    assert len(digests) == 1
    assert folded(section, *plays[:5]).digest not in digests  # not simply the first ones


def test_thoughts_stand_before_their_actions() -> None:
    trajectory = Trajectory("A room.", (Step("look", "A mug.", thought="Where?"), Step("take mug", "")))
    assert verbatim(trajectory) == "A room.\nWhere?\n> look\nA mug.\n> take mug\n"
