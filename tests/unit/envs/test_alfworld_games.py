"""Where ALFWorld's games come from: the official folder, written by the test itself, and a parquet file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from retro.envs.alfworld.games import GameFolder, GameTable, open_games, sources_of
from tests.unit.envs.alfworld_rooms import COOL_MUG, PUT_PLATE, READ_BOOK, Room, logic


def row(task: str, trial: str, room: Room, solvable: bool = True) -> dict[str, object]:
    return {
        "task": task,
        "trial": trial,
        "task_type": room.kind,
        "goal": room.task,
        "pddl_problem": room.problem(),
        "walkthrough": list(room.walkthrough),
        "solvable": solvable,
    }


def write_table(folder: Path, rows: list[dict[str, object]]) -> Path:
    domain, grammar = logic()
    (folder / "alfred.pddl").write_text(domain, encoding="utf-8")
    (folder / "grammar_template.twl2").write_text(grammar.replace("UNKNOWN GOAL.", "@@GOAL@@"), encoding="utf-8")
    file = folder / "games.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def test_an_official_folder(tmp_path: Path) -> None:
    READ_BOOK.write(tmp_path / "look_at-Book" / "trial_B")
    COOL_MUG.write(tmp_path / "cool-Mug" / "trial_C")
    READ_BOOK.write(tmp_path / "look_at-Book" / "trial_A", walkthrough=[])
    games = open_games(str(tmp_path))
    assert list(games.kinds.items()) == [
        ("cool-Mug/trial_C", COOL_MUG.kind),
        ("look_at-Book/trial_A", READ_BOOK.kind),
        ("look_at-Book/trial_B", READ_BOOK.kind),
    ]
    assert games.load("look_at-Book/trial_A").walkthrough == ()
    game = games.load("look_at-Book/trial_B")
    assert game.walkthrough == READ_BOOK.walkthrough
    assert game.problem == READ_BOOK.problem()
    assert "look at book under the desklamp." in game.grammar
    assert game.kind == READ_BOOK.kind


def test_what_alfworld_leaves_out_is_left_out(tmp_path: Path) -> None:
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_A")
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_unsolvable", solvable=False)
    PUT_PLATE.write(tmp_path / "pick_and_place_with_movable_recep-Plate" / "trial_A")
    PUT_PLATE.write(tmp_path / "put-PlateSliced" / "trial_A")
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_no_trajectory")
    (tmp_path / "put-Plate" / "trial_no_trajectory" / "traj_data.json").unlink()
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_other_kind")
    (tmp_path / "put-Plate" / "trial_other_kind" / "traj_data.json").write_text('{"task_type": "juggle"}')
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_unchecked")
    file = tmp_path / "put-Plate" / "trial_unchecked" / "game.tw-pddl"
    unmarked = {key: value for key, value in json.loads(file.read_text()).items() if key != "solvable"}
    file.write_text(json.dumps(unmarked))
    assert list(GameFolder(tmp_path).kinds) == ["put-Plate/trial_A"]


@pytest.mark.parametrize("id", ["", "x", "put-Plate/none", "put-Plate/../put-Plate/trial_A", "/etc/passwd", "a/b/c"])
def test_a_folder_has_no_other_games(tmp_path: Path, id: str) -> None:
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_A")
    games = GameFolder(tmp_path)
    assert games.has("put-Plate/trial_A")
    assert not games.has(id)


GAME = '{"solvable": true, "pddl_domain": "", "grammar": "", "pddl_problem": "", '


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested deeper than 100 levels"),
        (GAME + '"walkthrough": 5}', "walkthrough is not a list of commands"),
        ("[]", "an object is expected, not a list"),
        ('{"solvable": true, "grammar": ""}', "has no pddl_domain"),
    ],
)
def test_a_file_that_is_no_game_is_named(tmp_path: Path, content: str, says: str) -> None:
    PUT_PLATE.write(tmp_path / "put-Plate" / "trial_A")
    (tmp_path / "put-Plate" / "trial_A" / "game.tw-pddl").write_text(content)
    with pytest.raises(ValueError, match=rf"trial_A/game\.tw-pddl.*{says}"):
        GameFolder(tmp_path).load("put-Plate/trial_A")


def test_a_table_has_the_same_games(tmp_path: Path) -> None:
    rows = [
        row("look-Book", "trial_B", READ_BOOK),
        row("cool-Mug", "trial_C", COOL_MUG),
        row("cool-Mug", "trial_unsolvable", COOL_MUG, solvable=False),
        row("put-with_movable", "trial_A", COOL_MUG),
    ]
    games = open_games(str(write_table(tmp_path, rows)))
    assert isinstance(games, GameTable)
    assert list(games.kinds.items()) == [("cool-Mug/trial_C", COOL_MUG.kind), ("look-Book/trial_B", READ_BOOK.kind)]
    assert not games.has("cool-Mug/trial_unsolvable")
    game, data = games.load("cool-Mug/trial_C"), COOL_MUG.data()
    assert (game.domain, game.grammar, game.problem) == (data["pddl_domain"], data["grammar"], data["pddl_problem"])
    assert game.walkthrough == COOL_MUG.walkthrough


def test_what_is_wrong_with_a_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere; the official games come by `alfworld-download`"):
        open_games(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds no TASK/TRIAL/game\.tw-pddl"):
        open_games(str(tmp_path))
    file = write_table(tmp_path, [row("a", "b", COOL_MUG)])
    (tmp_path / "grammar_template.twl2").unlink()
    with pytest.raises(ValueError, match=r"games\.parquet needs grammar_template\.twl2 beside it"):
        open_games(str(file))


def test_a_table_that_is_none_is_said(tmp_path: Path) -> None:
    file = write_table(tmp_path, [row("a", "b", COOL_MUG)])
    pyarrow.parquet.write_table(pyarrow.table({"task": ["a"], "trial": ["b"]}), file)
    with pytest.raises(ValueError, match=r"has no column 'task_type'; it has task, trial"):
        open_games(str(file))
    file.write_text("no parquet")
    with pytest.raises(ValueError, match="neither a folder nor a parquet file"):
        open_games(str(file))


def test_a_damaged_table_is_said(tmp_path: Path) -> None:
    file = write_table(tmp_path, [row("a", "b", COOL_MUG)])
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * (len(content) // 3) + content[4 + len(content) // 3 :])
    with pytest.raises(ValueError, match=r"games\.parquet is damaged: "):
        _ = open_games(str(file)).kinds
    file = write_table(tmp_path, [row("a", "b", COOL_MUG)])
    (tmp_path / "alfred.pddl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"alfred\.pddl: not UTF-8"):
        open_games(str(file))


def test_the_releases_folders_are_the_splits(tmp_path: Path) -> None:
    assert sources_of("games.parquet") == "games.parquet"
    assert sources_of({"train": "a"}) == {"train": "a"}
    for folder in ("train", "valid_seen", "valid_unseen"):
        (tmp_path / folder).mkdir()
    assert sources_of(str(tmp_path)) == {
        "train": str(tmp_path / "train"),
        "validation": str(tmp_path / "valid_seen"),
        "test": str(tmp_path / "valid_unseen"),
    }
