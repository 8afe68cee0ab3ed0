"""What every built-in bank keeps: one content for all ways to it, its bounds, nothing of the own task, the control."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from retro.config import ConfigError, RunConfig
from retro.config.points import POINTS
from retro.memory import Query
from retro.memory.bank import bank_of, fold_bank, learns, make_memory
from retro.memory.entries import ENTRIES, EntryBank, shortened, tokens
from retro.types import Episode
from tests.unit.memory.plays import HOSTILE, ask, folded, in_order, memory_section, play, task, through_a_folder

BANKS = [kind for kind in POINTS["memory"].kinds if learns(memory_section(kind))]


def plays(count: int = 40) -> list[Episode]:
    """Tasks of two kinds, each with a failed play and one that succeeds or not."""
    found = []
    for number in range(count):
        of = task(f"t{number}", ("heat", "clean")[number % 2])
        found.append(play(of, f"look on shelf {number % 10} first.", success=False, thing=f"mug{number // 4}"))
        actions = ("go to desk", f"take mug{number}", "use stove", *["look"] * (number % 3))
        found.append(
            play(
                of, f"the mug is on desk {number}.", success=number % 5 > 0, actions=actions, thing=f"mug{number // 4}"
            )
        )
    return found


@pytest.mark.parametrize("kind", BANKS)
def test_a_bank_is_what_was_saved_whatever_the_order_of_arrival(kind: str, tmp_path: Path) -> None:
    section, episodes = memory_section(kind, capacity=15), plays()
    contents = set()
    for seed in range(3):
        memory = through_a_folder(section, random.Random(seed).sample(episodes, len(episodes)), tmp_path / str(seed))
        contents.add((tmp_path / str(seed) / "content" / ENTRIES).read_bytes())
        fresh = folded(section, *in_order(episodes))
        assert memory.digest == fresh.digest
        assert memory.recall(ask("heat", own=("a", "b"))) == fresh.recall(ask("heat", own=("a", "b")))
    assert len(contents) == 1
    again = fold_bank(section, in_order(episodes), tmp_path / "0")  # over what an interrupted stage left
    assert again.digest == memory.digest
    assert folded(section).digest != memory.digest


@pytest.mark.parametrize("kind", BANKS)
def test_the_capacity_is_exact_and_what_is_shown_is_bounded(kind: str) -> None:
    many, few = plays(40), memory_section(kind, capacity=7)
    memory = folded(few, *many)
    assert isinstance(memory, EntryBank)
    assert len(memory.entries) == 7
    assert len(memory.recall(ask("heat", own=("a", "b", "c", "d"))).entries) <= 7 + 3


@pytest.mark.parametrize("kind", BANKS)
def test_the_latest_reflections_follow_and_an_empty_bank_shows_only_them(kind: str) -> None:
    memory = folded(memory_section(kind), *plays())
    recalled = memory.recall(ask("heat", own=("a", "b", "c", "d")))
    assert recalled.ids[-3:] == ("reflection-1", "reflection-2", "reflection-3")
    assert len(recalled.entries) > 3
    assert make_memory(memory_section(kind, window=1)).recall(ask("heat", own=("a", "b"))).entries == ("b",)
    assert make_memory(memory_section(kind, window=0)).recall(ask("heat", own=("a", "b"))).entries == ()


@pytest.mark.parametrize("kind", BANKS)
@pytest.mark.parametrize("shuffled", [False, True])
def test_nothing_is_recalled_for_its_own_task_or_in_another_environment(kind: str, shuffled: bool) -> None:
    of = task("t0")
    memory = folded(
        memory_section(kind, shuffled=shuffled), *[play(of, f"look {n} times", id=f"{n}") for n in range(3)]
    )
    assert memory.recall(ask("heat", name="t0")).entries == ()
    elsewhere = folded(memory_section(kind), *[play(task("t0", environment="shop"), "buy less", id="s")] * 3)
    assert elsewhere.recall(ask("heat")).entries == ()


@pytest.mark.parametrize("kind", BANKS)
def test_the_control_recalls_as_for_a_task_of_another_kind(kind: str) -> None:
    episodes = plays()
    own, control = (folded(memory_section(kind, shuffled=on), *episodes) for on in (False, True))
    assert own.digest == control.digest
    shown = {name: control.recall(ask("heat", name=name)).ids for name in map(str, range(8))}
    assert shown == {name: control.recall(ask("heat", name=name)).ids for name in shown}
    assert len(set(shown.values())) > 1  # each task gets its own
    assert isinstance(own, EntryBank)
    others = [entry for entry in own.entries.values() if entry.kind == "clean"]
    assert set(shown.values()) <= {own.recall(Query(task(e.task, e.kind), e.opening)).ids for e in others}


def test_the_control_of_one_kind_recalls_as_for_another_task() -> None:
    names = [f"t{number}" for number in range(6)]
    episodes = [play(task(name), thing=f"mug{number // 2}", id=name) for number, name in enumerate(names)]
    memory = folded(memory_section("trajectories", shuffled=True), *episodes)
    partners = {name: memory.recall(ask("heat", f"mug{n // 2}", name)).ids[0] for n, name in enumerate(names)}
    assert all(partners[name] != name for name in names)
    assert isinstance(memory, EntryBank)
    entries = list(memory.entries.values())
    assert all(memory._other(ask("heat", name=name), entries).task != name for name in names)


@pytest.mark.parametrize("kind", BANKS)
def test_an_arm_may_recall_otherwise_but_not_learn_otherwise(kind: str, tmp_path: Path) -> None:
    config = RunConfig.model_validate({"memory": {"kind": kind}, "runs": str(tmp_path)})
    assert bank_of(memory_section(kind, shuffled=True, window=1), config) == tmp_path / "run" / "memory"
    with pytest.raises(ConfigError, match="is not the run's own memory"):
        bank_of(memory_section(kind, capacity=3), config)


@pytest.mark.parametrize("kind", BANKS)
def test_hostile_texts_are_texts(kind: str, tmp_path: Path) -> None:
    episodes = [
        play(task(f"t{number}"), text, actions=(text, "look", "take"), thing=text[:50_000], id=f"e{number}-{again}")
        for number, text in enumerate(HOSTILE)
        for again in range(2)
    ]
    section = memory_section(kind)
    memory = through_a_folder(section, episodes, tmp_path)
    assert (tmp_path / "content" / ENTRIES).stat().st_size < 300_000
    for thing in HOSTILE:
        recalled = memory.recall(ask("heat", thing))
        assert all(tokens(entry) < 1_300 for entry in recalled.entries)


@pytest.mark.parametrize("kind", BANKS)
@pytest.mark.parametrize(
    "damaged", [b"{", b"[]\n", b'{"id": "x"}\n', b"\xff\n", b'{"id": "x", "tries": 0, "environment": 1}\n', None]
)
def test_a_damaged_bank_is_one_line_with_its_file(kind: str, damaged: bytes | None, tmp_path: Path) -> None:
    section = memory_section(kind)
    fold_bank(section, in_order(plays()), tmp_path)
    file = tmp_path / "content" / ENTRIES
    file.unlink() if damaged is None else file.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"entries\.jsonl.*; run the stage memory again"):
        make_memory(section, tmp_path)


def test_an_entry_is_one_line_of_json(tmp_path: Path) -> None:
    fold_bank(memory_section("retrieval"), [play(task("t"), "one\ntwo\u2028three")], tmp_path)
    (line,) = (tmp_path / "content" / ENTRIES).read_bytes().splitlines()
    assert json.loads(line)["text"] == "one\ntwo\u2028three"


def test_a_long_text_loses_its_end_visibly() -> None:
    assert shortened(" short ", 2) == "short"
    assert shortened("12345678", 2) == "12345678"
    assert shortened("123456789", 2) == "12345…"
    assert shortened("ééééé", 2) == "éé…"  # never half of a character
    assert tokens("") == 0
    assert tokens("12345") == 2
