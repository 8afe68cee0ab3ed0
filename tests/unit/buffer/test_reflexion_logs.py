from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from retro.buffer import ReplayBuffer
from retro.buffer.jsonl import BufferImportError
from retro.buffer.reflexion_logs import import_reflexion_logs, parse_trajectory
from retro.buffer.stats import Change, buffer_stats, stats_table
from retro.buffer.views import contexts, sft_examples
from retro.types import Recalled, Split, Step, StopReason

QUESTION = {"env": "hotpotqa", "agent": "react", "strategy": "reflexion", "source": "log/a", "task_id": "q1"}
QUESTION |= {"question": "Who?", "key": "Ada"}


def outcome(answer: str, f1: float, status: str = "incorrect", suffix: str = "") -> dict[str, Any]:
    text = f"Thought 1: I know.\nAction 1: Finish[{answer}]\nObservation 1: Answer is {status.upper()}"
    values = {"trajectory": text, "G": float(status == "correct"), "F1": f1, "answer": answer, "status": status}
    return {name + suffix: value for name, value in values.items()}


def trial(number: int, prompted: str = "", carried_over: bool = False, **result: Any) -> dict[str, Any]:
    return {**QUESTION, "trial": number, "reflections_in_prompt": prompted, "carried_over": carried_over, **result}


def tuple_row(number: int, reflection: str | None, prior: str = "", **result: Any) -> dict[str, Any]:
    return {**QUESTION, "trial": number, "context": "", "prior_reflections": prior, "reflection": reflection, **result}


TRIALS = [
    trial(1, **outcome("Bob", 0.0)),
    trial(2, "- Read more.\n- Then answer.", **outcome("Ada B", 0.5)),
    trial(3, "- Read more.\n- Then answer.\n- Be brief.", **outcome("Ada", 1.0, "correct")),
    trial(4, carried_over=True, **outcome("Ada", 0.0, "correct")),
]
TUPLES = [
    tuple_row(1, "Read more.\n- Then answer.", **outcome("Bob", 0.0), **outcome("Ada B", 0.5, suffix="_next")),
    tuple_row(
        2,
        "Be brief.",
        "- Read more.\n- Then answer.",
        **outcome("Ada B", 0.5),
        **outcome("Ada", 1.0, "correct", suffix="_next"),
    ),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"question": 3}, "question is int, not text"),
        ({"status": "tired"}, "'tired': known are"),
        ({"trial": None}, "int"),
    ],
)
def test_a_row_of_another_type_is_named(
    buffer: ReplayBuffer, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    path = write(tmp_path / "trials.parquet", [TRIALS[0] | change])
    with pytest.raises(BufferImportError, match=rf"trials\.parquet: line 1: .*{problem}"):
        import_reflexion_logs(buffer, path)


def test_text_that_is_not_utf8_is_named(buffer: ReplayBuffer, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(TRIALS[:1])
    broken = pyarrow.array([b"\xff"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(
        table.set_column(table.column_names.index("question"), "question", broken), tmp_path / "t.parquet"
    )
    with pytest.raises(BufferImportError, match=r"t\.parquet: not a readable parquet file"):
        import_reflexion_logs(buffer, tmp_path / "t.parquet")


def test_both_layouts_tell_the_same_tree(tmp_path: Path) -> None:
    write(tmp_path / "trials.parquet", TRIALS)
    write(tmp_path / "tuples.parquet", TUPLES)
    digests = set()
    for place in ("trials.parquet", "tuples.parquet", "."):
        with ReplayBuffer("sqlite://") as buffer:
            assert import_reflexion_logs(buffer, tmp_path / place).added == 3
            assert import_reflexion_logs(buffer, tmp_path / place).present == 3
            digests.add(buffer.digest())
            first, second, third = buffer.episodes()
            assert (first.return_, second.return_, third.return_) == (0.0, 0.5, 1.0)
            assert [episode.success for episode in (first, second, third)] == [False, False, True]
            assert first.recalled == Recalled()
            assert second.recalled == Recalled(("Read more.\n- Then answer.",), ("reflection-0",))
            assert third.recalled.entries == ("Read more.\n- Then answer.", "Be brief.")
            (stats,) = buffer_stats(buffer)
            assert (stats.tuples, stats.by_return, stats.by_success) == (2, Change(2, 0, 0), Change(1, 1, 0))
    assert len(digests) == 1


def test_retries_without_reflection_are_controls(buffer: ReplayBuffer, tmp_path: Path) -> None:
    plain = {"strategy": "none", "source": "log/base"}
    rows = [
        tuple_row(1, None, **outcome("Bob", 0.2), **outcome("Bob", 0.2, suffix="_next")) | plain,
        tuple_row(2, None, **outcome("Bob", 0.2), **outcome("", 0.0, "halted", suffix="_next")) | plain,
    ]
    import_reflexion_logs(buffer, write(tmp_path / "tuples.parquet", rows))
    (stats,) = buffer_stats(buffer)
    assert (stats.tuples, stats.controls, stats.controls_by_return) == (0, 2, Change(0, 1, 1))
    assert [episode.stop for episode in buffer.episodes()][-1] is StopReason.HORIZON


def test_a_gap_in_a_log_begins_a_new_root_with_the_memory_it_had(buffer: ReplayBuffer, tmp_path: Path) -> None:
    rows = [
        TUPLES[0],
        tuple_row(3, "Third.", "- First.\n- Second.", **outcome("C", 0.0), **outcome("D", 0.0, suffix="_next")),
    ]
    import_reflexion_logs(buffer, write(tmp_path / "tuples.parquet", rows))
    first, second = buffer.groups()
    assert (first.parent.trial, first.parent.recalled.entries) == (0, ())
    assert (second.parent.trial, second.parent.parent) == (2, None)
    assert second.parent.recalled == Recalled(("First.", "Second."), ("reflection-0", "reflection-1"))
    assert second.retries[0].recalled.entries == ("First.", "Second.", "Third.")
    assert not first.controls
    assert not second.controls


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"env": "hotpotqa"}], "columns are missing"),
        ([{**TRIALS[0], "status": "maybe"}], "line 1: status 'maybe'"),
        ([TRIALS[0], {**TRIALS[1], "G": 1.0}], "line 2: G 1.0 contradicts"),
        ([TUPLES[0], {**TUPLES[1], "F1": 0.25}], "trial 2: two rows disagree on return"),
    ],
)
def test_unreadable_logs_are_named(
    buffer: ReplayBuffer, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(BufferImportError, match=message):
        import_reflexion_logs(buffer, write(tmp_path / "log.parquet", rows))
    assert buffer.count() == 0


def test_files_that_are_none(buffer: ReplayBuffer, tmp_path: Path) -> None:
    with pytest.raises(BufferImportError, match="no such file"):
        import_reflexion_logs(buffer, tmp_path)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(BufferImportError, match="not a readable parquet"):
        import_reflexion_logs(buffer, tmp_path)


def test_trajectories_are_parsed_into_steps() -> None:
    text = "Thought 1: a\nAction 1: Search[b]\nObservation 1: c\nand d\nThought 2: e\nAction 2: Finish[f]"
    assert parse_trajectory(text, "Q").steps == (
        Step("Search[b]", "c\nand d", thought="a"),
        Step("Finish[f]", "", thought="e"),
    )
    assert parse_trajectory("Thought: only this", "Q").steps == (Step("", "", thought="only this"),)
    assert parse_trajectory("", "Q").steps == ()


def test_the_published_logs_show_what_is_known_of_them(buffer: ReplayBuffer, shared_data: Path) -> None:
    logs = shared_data / "logs"
    import_reflexion_logs(buffer, logs / "reflexion_tuples.parquet")
    stats = {item.environment: item for item in buffer_stats(buffer)}
    assert stats["hotpotqa"].tuples == 1115
    assert stats["hotpotqa"].by_return == Change(134, 886, 95)
    assert stats["hotpotqa"].by_success == Change(56, 1059, 0)
    assert stats["hotpotqa"].controls == 673
    assert stats["alfworld"].tuples == stats["webshop"].tuples == 0
    assert (stats["alfworld"].outcomes_only, stats["webshop"].outcomes_only) == (363, 334)
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(stats_table(list(stats.values())))
    for shown in ("1,115", "134/886/95", "56/1,059/0"):
        assert shown in capture.get()
    assert len(list(sft_examples(buffer, "delta_return", 0.0, list(Split)))) == 134
    assert {context.episode.task.environment for context in contexts(buffer, list(Split))} == {"hotpotqa"}


def test_both_published_files_together_have_the_same_tuples(buffer: ReplayBuffer, shared_data: Path) -> None:
    report = import_reflexion_logs(buffer, shared_data / "logs")
    (stats,) = (item for item in buffer_stats(buffer) if item.environment == "hotpotqa")
    assert (stats.tuples, stats.by_return) == (1115, Change(134, 886, 95))
    assert stats.episodes == 2706  # every trial that was really played
    assert report.added == 3704
