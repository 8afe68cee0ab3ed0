from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.buffer import ReplayBuffer
from retro.buffer.jsonl import BufferImportError, export_jsonl, import_jsonl
from retro.buffer.splits import SplitRule
from retro.types import Episode, Split, StopReason

Make = Callable[..., Episode]

ROOT: dict[str, Any] = {
    "id": "a",
    "environment": "shop",
    "task": "buy a lamp",
    "trajectory": {"opening": "Find a lamp.", "steps": [{"action": "search lamp", "observation": "none"}]},
    "return": 0.25,
    "success": False,
}
RETRY: dict[str, Any] = {
    **ROOT,
    "id": "b",
    "trial": 1,
    "parent": "a",
    "return": 1,
    "success": True,
    "reflection": "Scroll.",
}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_the_least_a_line_needs(buffer: ReplayBuffer, tmp_path: Path) -> None:
    report = import_jsonl(buffer, write(tmp_path / "trials.jsonl", ROOT, "", RETRY))
    assert (report.added, report.present, report.skipped) == (2, 0, ())
    retry = buffer.get("b")
    assert retry is not None
    assert (retry.stop, retry.return_, retry.trial) == (StopReason.SUCCESS, 1.0, 1)
    assert retry.reflection is not None
    assert (retry.reflection.text, retry.reflection.source) == ("Scroll.", "import")
    assert retry.task.split is SplitRule().split("shop", "buy a lamp")


def test_importing_twice_adds_nothing_even_without_ids(buffer: ReplayBuffer, tmp_path: Path) -> None:
    nameless = {key: value for key, value in ROOT.items() if key != "id"}
    path = write(tmp_path / "trials.jsonl", nameless)
    assert import_jsonl(buffer, path).added == 1
    assert import_jsonl(buffer, path) == type(import_jsonl(buffer, path))(added=0, present=1)


def test_a_parent_may_stand_after_its_child(buffer: ReplayBuffer, tmp_path: Path) -> None:
    assert import_jsonl(buffer, write(tmp_path / "trials.jsonl", RETRY, ROOT)).added == 2


BAD = [
    ("{", "not JSON"),
    ("[]", "must be an object"),
    (json.dumps({**ROOT, "id": "c", "return": 2}), "return: "),
    (json.dumps({**ROOT, "id": "c", "retrun": 1}), "retrun: "),
    (json.dumps({key: value for key, value in ROOT.items() if key != "success"}), "success: "),
    (json.dumps({**ROOT, "id": "c", "info": {"x": float("nan")}}), "NaN"),
    (json.dumps({**ROOT, "id": "a", "return": 0.5}), "another one with this id"),
    (json.dumps({**RETRY, "id": "c", "parent": "nobody"}), "'nobody' is not in the buffer"),
    (json.dumps({**ROOT, "id": "c", "split": "train", "kind": "x"}), "one split and one kind"),
    (json.dumps({**ROOT, "id": "c", "reflection": {"text": ""}}), "reflection.text: "),
]


@pytest.mark.parametrize(("line", "problem"), BAD)
def test_bad_lines_are_named_and_refused_or_skipped(
    buffer: ReplayBuffer, tmp_path: Path, line: str, problem: str
) -> None:
    path = write(tmp_path / "trials.jsonl", ROOT, line, RETRY)
    with pytest.raises(BufferImportError, match=r"trials\.jsonl") as raised:
        import_jsonl(buffer, path)
    assert "line 2: " in str(raised.value)
    assert problem in str(raised.value)
    assert buffer.counts().episodes == 0
    report = import_jsonl(buffer, path, on_error="skip")
    assert report.added == 2
    (bad,) = report.skipped
    assert bad.number == 2
    assert problem in bad.problem


def test_what_hangs_on_a_bad_line_is_bad_too(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "trials.jsonl", {**ROOT, "success": "maybe"}, RETRY)
    report = import_jsonl(buffer, path, on_error="skip")
    assert (report.added, [bad.number for bad in report.skipped]) == (0, [1, 2])


def test_bytes_that_are_no_text_and_files_that_are_not_there(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"id": "\xe4"}\n')
    with pytest.raises(BufferImportError, match="line 1: not UTF-8"):
        import_jsonl(buffer, path)
    with pytest.raises(BufferImportError, match="no such file"):
        import_jsonl(buffer, tmp_path / "none.jsonl")


def test_only_the_first_problems_are_listed(buffer: ReplayBuffer, tmp_path: Path) -> None:
    with pytest.raises(BufferImportError, match="and 5 more"):
        import_jsonl(buffer, write(tmp_path / "trials.jsonl", *["{"] * 25))


def test_an_export_is_read_back_equal(buffer: ReplayBuffer, make: Make, tmp_path: Path) -> None:
    root = make("root", 0.3)
    for episode in (root, make("retry", 0.6, parent=root, text="öffne es"), make("control", 0.3, parent=root)):
        buffer.add(episode)
    path = tmp_path / "out" / "episodes.jsonl"
    assert export_jsonl(buffer, path) == 3
    assert list(path.parent.iterdir()) == [path]
    with ReplayBuffer("sqlite://") as other:
        assert import_jsonl(other, path).added == 3
        assert other.digest() == buffer.digest()
        assert list(other.episodes()) == list(buffer.episodes())
    assert export_jsonl(buffer, path, split="test") == 0


@given(st.text(max_size=30), st.integers(0, 2**31))
def test_the_split_rule_is_a_function_of_environment_id_and_seed(task: str, seed: int) -> None:
    rule = SplitRule(seed)
    assert rule.split("hotpotqa", task) is SplitRule(seed).split("hotpotqa", task)
    assert SplitRule(seed, 1, 0).split("hotpotqa", task) is Split.VALIDATION
    assert SplitRule(seed, 0, 1).split("hotpotqa", task) is Split.TEST
    assert SplitRule(seed, 0, 0).split("hotpotqa", task) is Split.TRAIN


def test_the_split_rule_keeps_its_shares() -> None:
    found = [SplitRule(0, 0.2, 0.1).split("hotpotqa", str(number)) for number in range(5000)]
    assert found.count(Split.VALIDATION) == pytest.approx(1000, rel=0.1)
    assert found.count(Split.TEST) == pytest.approx(500, rel=0.15)
    with pytest.raises(ValueError, match="together"):
        SplitRule(0, 0.6, 0.6)
