"""The cached engine against TextWorld's own: the same transcripts, word for word."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.envs.alfworld.games import GameData, GameTable
from retro.envs.alfworld.goal import milestones
from tests.unit.envs.alfworld_rooms import COOL_MUG, HEAT_POTATO, READ_BOOK, ROOMS, Room

pytest.importorskip("alfworld", reason="pip install 'retro[alfworld]'")
pytest.importorskip("textworld", reason="pip install 'retro[alfworld]'")

from retro.envs.alfworld import engine, translation
from retro.envs.alfworld.engine import CachedGame, Game, Scene, UpstreamGame, open_game
from retro.envs.alfworld.text import UnsafeGrammarError


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner's translator replaces the process's arguments by its own."""
    monkeypatch.setattr(sys, "argv", sys.argv)


def walk(game: Game, walkthrough: tuple[str, ...], choices: list[int]) -> Iterator[Scene]:
    """Everything that ``game`` says on the way: some of its own commands, then the walkthrough, then nonsense."""
    scene = game.start()
    yield scene
    for choice in choices:
        scene = game.step(scene.commands[choice % len(scene.commands)])
        yield scene
    for command in (*walkthrough, "help", "no such command", "inventory", "look"):
        yield game.step(command)
    game.close()


def assert_equal_transcripts(data: dict[str, Any], walkthrough: tuple[str, ...], choices: list[int]) -> None:
    ours = list(walk(CachedGame(data), walkthrough, choices))
    theirs = list(walk(UpstreamGame(data), walkthrough, choices))
    assert ours == theirs
    assert any(scene.won for scene in ours) or choices


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.kind)
def test_both_engines_tell_a_made_up_room_alike(room: Room) -> None:
    assert_equal_transcripts(room.data(), room.walkthrough, [])


@given(choices=st.lists(st.integers(0, 1000), max_size=12), room=st.sampled_from((COOL_MUG, READ_BOOK)))
@settings(max_examples=3, deadline=None)
def test_both_engines_tell_any_walk_alike(choices: list[int], room: Room) -> None:
    assert_equal_transcripts(room.data(), room.walkthrough, choices)


def real_games(shared_data: Path, every: int) -> list[GameData]:
    table = GameTable(shared_data / "alfworld" / "valid_seen.parquet")
    return [table.load(id) for id in list(table.kinds)[::every]]


def test_both_engines_tell_a_real_game_alike(shared_data: Path) -> None:
    (game,) = real_games(shared_data, every=140)
    assert_equal_transcripts(game.for_engine, game.walkthrough, [3, 14, 15])


def test_games_that_differ_in_their_goal_share_a_grammar() -> None:
    engine._read_grammar.cache_clear()
    for task in ("put a cool mug in cabinet.", "cool some mug and put it in cabinet."):
        room = replace(COOL_MUG, task=task)
        scene = CachedGame(room.data()).start()
        assert scene.feedback.endswith(f"Your task is to: {task}")
        assert scene == UpstreamGame(room.data()).start()
    assert engine._read_grammar.cache_info().misses == 1


@pytest.mark.parametrize("goal", ["put #list_empty# in cabinet.", "put {1 + 1} in cabinet.", "goal-of-this-game"])
def test_a_goal_that_is_more_than_words_stays_in_its_grammar(goal: str) -> None:
    grammar = COOL_MUG.data()["grammar"].replace(COOL_MUG.task, goal)
    text, told = engine._without_goal(grammar)
    assert text.replace(engine._GOAL_STANDS_HERE, told) == grammar and goal in text


@pytest.mark.slow
def test_both_engines_tell_many_real_games_alike(shared_data: Path) -> None:
    for number, game in enumerate(real_games(shared_data, every=7)):
        choices = random.Random(number).choices(range(1000), k=10)
        assert_equal_transcripts(game.for_engine, game.walkthrough, [])
        assert_equal_transcripts(game.for_engine, game.walkthrough, choices)


def test_games_side_by_side_do_not_touch() -> None:
    alone = list(walk(CachedGame(HEAT_POTATO.data()), HEAT_POTATO.walkthrough, []))
    first, second = CachedGame(HEAT_POTATO.data()), CachedGame(COOL_MUG.data())
    turns = zip(
        walk(first, HEAT_POTATO.walkthrough, []), walk(second, COOL_MUG.walkthrough[:6], [1, 2, 3]), strict=False
    )
    seen = [ours for ours, _ in turns]
    assert seen == alone[: len(seen)]
    assert len(seen) == len(alone)


def test_a_game_tells_the_same_after_another_one() -> None:
    told = list(walk(CachedGame(HEAT_POTATO.data()), HEAT_POTATO.walkthrough, []))
    assert any(scene.won for scene in walk(CachedGame(COOL_MUG.data()), COOL_MUG.walkthrough, []))
    assert list(walk(CachedGame(HEAT_POTATO.data()), HEAT_POTATO.walkthrough, [])) == told


def test_what_is_won_is_told_at_once() -> None:
    scenes = list(walk(CachedGame(READ_BOOK.data()), READ_BOOK.walkthrough, []))
    assert [scene.won for scene in scenes[: len(READ_BOOK.walkthrough) + 1]] == [False] * 5 + [True]
    assert all("help" not in scene.commands for scene in scenes)


def test_other_versions_play_on_textworlds_own_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_game(COOL_MUG.data()), CachedGame)
    monkeypatch.setattr(engine, "CHECKED_VERSIONS", {"textworld": "0.0.1", "alfworld": "0.4.2"})
    with pytest.warns(UserWarning, match=r"checked with .*0\.0\.1.*, installed is"):
        assert isinstance(open_game(COOL_MUG.data()), UpstreamGame)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getcwd()",
        "r.name.__class__",
        "r.name * 1000",
        "(lambda: 1)()",
    ],
)
@pytest.mark.parametrize("engine", [CachedGame, UpstreamGame])
def test_a_grammar_that_runs_code_is_refused(engine: Any, expression: str) -> None:
    data = COOL_MUG.data()
    data["grammar"] = data["grammar"].replace("You close the {r.name}.", f"You close the {{{expression}}}.")
    with pytest.raises(UnsafeGrammarError, match="does more than name things"):
        engine(data)


def test_a_grammar_sees_no_builtins() -> None:
    data = COOL_MUG.data()
    data["grammar"] = data["grammar"].replace("You close the {r.name}.", "You close the {print}.")
    game = CachedGame(data)
    game.start()
    for command in COOL_MUG.walkthrough[:6]:
        game.step(command)
    with pytest.raises(NameError, match="print"):
        game.step("close cabinet 1")


def test_milestones_ask_for_the_goals_types() -> None:
    held, treated = milestones(HEAT_POTATO.kind, HEAT_POTATO.problem())
    assert held["bound"] == treated["bound"] == {"t": ("otype", "potatotype")}
    assert treated["query"].startswith("ishot(o:object)")
    _, lit = milestones(READ_BOOK.kind, READ_BOOK.problem())
    assert lit["bound"] == {"d": ("otype", "desklamptype")}


def test_milestones_of_another_kind_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"no milestones for tasks of kind 'pick_three'; there are: pick_and"):
        milestones("pick_three", READ_BOOK.problem())
    with pytest.raises(ValueError, match="not one of kind pick_two_obj_and_place"):
        milestones("pick_two_obj_and_place", READ_BOOK.problem())


def test_a_translation_is_kept_between_processes_and_made_again_when_it_is_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RETRO_CACHE", str(tmp_path))
    translation.translate.cache_clear()
    domain, problem = COOL_MUG.data()["pddl_domain"], COOL_MUG.data()["pddl_problem"]
    first = translation.translate(domain, problem)
    (file,) = tmp_path.glob("alfworld/*")

    def refuse(*_: Any) -> Any:
        raise AssertionError("it was translated again")

    translation.translate.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(translation, "_translated", refuse)
        again = translation.translate(domain, problem)
    assert again.sas == first.sas
    assert_equal_transcripts(COOL_MUG.data(), COOL_MUG.walkthrough, [2, 7])

    whole = file.read_bytes()
    for damaged in (whole[:-9], b"", whole[:40] + b"\0\0\0" + whole[43:]):
        file.write_bytes(damaged)
        translation.translate.cache_clear()
        assert translation.translate(domain, problem).sas == first.sas
        assert file.read_bytes() == whole
    translation.translate.cache_clear()
