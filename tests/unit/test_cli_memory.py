"""``retro memory show``: the bank of a run, an export or a folder, its entries, what it recalls, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from retro.artifacts import write_json
from retro.cli.showing import show_bank
from retro.config import ConfigError, RunConfig
from retro.config.points import POINTS
from retro.envs import make_taskset
from retro.layout import RunFolder
from retro.memory.bank import FACTS, copy_bank, fold_bank, learns
from retro.types import Episode, Split, Step, Task, Trajectory
from tests.unit.memory.plays import HOSTILE, in_order, memory_section, opening, play, task

PLAYS = [
    play(task("a"), "use the stove.", id="one"),
    play(task("b"), "use the stove.", id="two"),
    play(task("c", "clean"), "give up.", success=False, id="three"),
]


def learnt(folder: Path, kind: str = "playbook", episodes: Sequence[Episode] = PLAYS) -> RunConfig:
    """A run whose memory has learnt; its folder is ``folder/run``."""
    config = RunConfig.model_validate(
        {
            "memory": {"kind": kind},
            "runs": str(folder),
            "environment": {"tasks": {"train": 2, "validation": 0, "test": 2}},
        }
    )
    run = RunFolder(config.run_dir)
    config.run_dir.mkdir(parents=True)
    run.config.write_text(config.dump(), encoding="utf-8")
    fold_bank(config.memory, in_order(episodes), run.memory)
    return config


def test_the_entries_are_printed_the_best_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_bank(learnt(tmp_path).run_dir, None, None, 1, False)
    out = capsys.readouterr().out
    assert out.startswith("playbook, 2 entries of 6 tokens, ")
    assert "learnt from 3 episodes, which took 0 tokens of the actor" in out
    assert "1. household · heat · helpful 2 · harmful 0 · 4 tokens · " in out
    assert "\n   use the stove.\n" in out
    assert "give up." not in out
    assert out.endswith("1 more: --limit 2\n")


def test_a_run_an_export_and_a_bank_of_its_own_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = learnt(tmp_path).run_dir
    for copy in (tmp_path / "bank", tmp_path / "export" / "memory"):
        copy_bank(RunFolder(run).memory, copy)
    shown = set()
    for folder in (run, RunFolder(run).memory, tmp_path / "export", tmp_path / "bank"):
        show_bank(folder, None, None, 20, False)
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1


def test_what_is_recalled_for_a_text_or_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taskset = make_taskset("household", {})
    of = taskset.tasks(Split.TEST, 2)[1]
    begun, _ = taskset.make(of).reset()
    elsewhere = play(Task("household", "another", Split.TRAIN, of.kind), "look in the drawer.")
    same = replace(elsewhere, trajectory=Trajectory(begun, (Step("look", "ok"),)))
    run = learnt(tmp_path, episodes=[*PLAYS, same]).run_dir
    show_bank(run, None, of.id, 20, False)
    out = capsys.readouterr().out
    assert f"(household, {of.id}, {of.kind})" in out
    assert "look in the drawer." in out
    assert "use the stove." not in out
    show_bank(run, opening("heat", "mug"), None, 20, False)
    assert "   use the stove.\n" in capsys.readouterr().out
    show_bank(run, "nothing alike", None, 20, False)
    assert capsys.readouterr().out.endswith('for "nothing alike" (household)\nnothing\n')
    with pytest.raises(ConfigError, match="--task attic-7: not among the tasks of this run"):
        show_bank(run, None, "attic-7", 20, False)
    with pytest.raises(ConfigError, match="give one of the two"):
        show_bank(run, "x", "attic-7", 20, False)
    with pytest.raises(ConfigError, match="is not a run"):
        show_bank(RunFolder(run).memory, None, of.id, 20, False)


@pytest.mark.parametrize("kind", [kind for kind in POINTS["memory"].kinds if learns(memory_section(kind))])
def test_no_text_of_an_episode_reaches_the_terminal_raw(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episodes = [
        play(task(f"t{number}"), text, actions=(text, "look"), thing=text[:5_000], id=f"e{number}{text[:50]}")
        for number, text in enumerate([*HOSTILE, "\x9b31m\x85\x1b]0;title\x07"])
        if "\ud800" not in text
    ]
    run = learnt(tmp_path, kind, episodes).run_dir
    show_bank(run, None, None, 100, False)
    show_bank(run, HOSTILE[2], None, 100, False)
    show_bank(run, HOSTILE[2], None, None, False)
    out = capsys.readouterr().out
    assert len(out) > 1_000
    assert all(char == "\n" or char.isprintable() for char in out)


def test_json_has_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_bank(learnt(tmp_path).run_dir, opening("heat", "mug"), None, None, False)
    document = json.loads(capsys.readouterr().out)
    assert document["facts"]["episodes"] == 3
    assert document["facts"]["memory"]["kind"] == "playbook"
    assert [entry["text"] for entry in document["entries"]] == ["use the stove.", "give up."]
    assert document["entries"][0]["numbers"] == {"helpful": 2, "harmful": 0}
    assert document["recalled"][0]["entries"][-1] == "use the stove."


def test_a_folder_without_a_bank_is_told(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"runs": str(tmp_path), "name": "plain"})
    for name, memory, says in (
        ("plain", "window", "has no bank: its memory window does not learn across tasks"),
        ("early", "playbook", "has no bank yet: retro memory .*early/config.yaml"),
    ):
        run = RunFolder(tmp_path / name)
        run.memory.parent.mkdir()
        own = RunConfig.model_validate({"runs": str(tmp_path), "name": name, "memory": memory})
        run.config.write_text(own.dump(), encoding="utf-8")
        with pytest.raises(ConfigError, match=says):
            show_bank(tmp_path / name, None, None, 20, False)
    (config.run_dir / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="neither a run, nor an export, nor a bank"):
        show_bank(config.run_dir, None, None, 20, False)


def test_code_of_ones_own_runs_only_if_the_user_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = RunConfig.model_validate({"memory": {"kind": "tests.learning_memory:Beginnings"}}).memory
    fold_bank(own, PLAYS, tmp_path)
    with pytest.raises(ConfigError, match=r"code of one's own.*--trust-remote-code"):
        show_bank(tmp_path, None, None, 20, False)
    show_bank(tmp_path, "x", None, 20, True)
    assert "   Once: look\n" in capsys.readouterr().out
    show_bank(tmp_path, None, None, 20, True)
    assert "does not list its entries" in capsys.readouterr().out
    write_json(tmp_path / FACTS, {"digest": "x", "episodes": 3})
    with pytest.raises(
        ConfigError, match=r"bank\.json: not the facts of a bank \(memory: .*run the stage memory again"
    ):
        show_bank(tmp_path, None, None, 20, True)
