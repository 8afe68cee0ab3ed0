"""Logs of conversations in OpenAI's format, as episodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retro.buffer import ReplayBuffer
from retro.buffer.jsonl import BufferImportError
from retro.buffer.message_logs import LogRule, import_messages, load_rule, message_lines
from retro.buffer.splits import SplitRule
from retro.cli.app import app
from retro.config import ConfigError
from retro.types import Recalled, Split, StopReason, Usage

SYSTEM = {"role": "system", "content": "You book tables."}
CALL = {
    "role": "assistant",
    "content": "I look it up.",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Rome"}'}}],
}
FOUND = {"role": "tool", "tool_call_id": "c1", "content": "nothing found"}
RULE = LogRule("desk", task="metadata.ticket", return_="score", reflection="advice")


def line(ticket: str = "t1", score: object = 0.25, text: str = "A table in Rome, please.", **more: object) -> Any:
    messages = [SYSTEM, {"role": "user", "content": text}, CALL, FOUND, {"role": "assistant", "content": "Sorry."}]
    return {"messages": messages, "metadata": {"ticket": ticket}, "score": score, **more}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines), encoding="utf-8")
    return path


def test_a_conversation_becomes_an_episode(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", line(usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}))
    report = import_messages(buffer, message_lines([path]), RULE)
    assert (report.added, report.present, report.skipped) == (1, 0, ())
    [episode] = buffer.episodes()
    assert (episode.task.environment, episode.task.id, episode.task.split) == (
        "desk",
        "t1",
        SplitRule().split("desk", "t1"),
    )
    assert "A table in Rome, please." in episode.trajectory.opening
    assert [(s.thought, s.action, s.observation) for s in episode.trajectory.steps] == [
        ("I look it up.", 'find({"city": "Rome"})', "nothing found"),
        ("", "Sorry.", ""),
    ]
    assert (episode.return_, episode.success, episode.stop) == (0.25, False, StopReason.FAILURE)
    assert episode.usage == Usage(7, 2)


def test_lines_of_one_task_are_attempts_in_their_order(buffer: ReplayBuffer, tmp_path: Path) -> None:
    one = write(
        tmp_path / "1.jsonl", line(), line("t2"), line(score=0.5, advice="Ask for the district."), line("t2", 1)
    )
    two = write(tmp_path / "2.jsonl", line(score=1, advice="Call them."), line(score=0))
    assert import_messages(buffer, message_lines([one, two]), RULE).added == 6
    first, second, third = [e for e in buffer.episodes() if e.task.id == "t1" and (e.parent or e.return_ == 0.25)]
    assert [e.trial for e in (first, second, third)] == [0, 1, 2]
    assert (second.parent, third.parent) == (first.id, second.id)
    assert second.reflection is not None
    assert second.reflection.text == "Ask for the district."
    assert third.recalled == Recalled.latest(["Ask for the district.", "Call them."], 3)
    assert third.success
    [again] = [e for e in buffer.episodes() if e.return_ == 0]
    assert (again.trial, again.parent) == (0, None)  # after a success, a new chain begins
    control = next(e for e in buffer.episodes() if e.task.id == "t2" and e.trial == 1)
    assert control.reflection is None
    report = import_messages(buffer, message_lines([one, two]), RULE)
    assert (report.added, report.present) == (0, 6)


def test_without_a_path_the_opening_is_the_task(buffer: ReplayBuffer, tmp_path: Path) -> None:
    rule = LogRule("desk", return_="score")
    long = "A table for many. " * 50
    path = write(tmp_path / "log.jsonl", line(), line("other", 1), line(text=long), line(text=long, score=True))
    assert import_messages(buffer, message_lines([path]), rule).added == 4
    assert sorted(e.trial for e in buffer.episodes()) == [0, 0, 1, 1]
    assert {e.success for e in buffer.episodes() if e.trial} == {True}


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object, not list"),
        ({"score": 0.5}, "has no messages"),
        (line(score=None), "return"),
        (line(score=1.5), "return"),
        (line("new", advice="Look again."), "no failed attempt at task 'new' is before it"),
        ({**line(), "messages": [SYSTEM]}, "at least one"),
        ({**line(), "messages": [{"role": "user", "content": "x"}, FOUND]}, "no message before it has this tool call"),
        ({**line(), "messages": [{"role": "robot", "content": "x"}]}, "not a list of messages"),
        (line(usage={"prompt_tokens": -1}), "usage.prompt_tokens"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(
    buffer: ReplayBuffer, tmp_path: Path, bad: object, problem: str
) -> None:
    path = write(tmp_path / "log.jsonl", line(), bad)
    with pytest.raises(BufferImportError, match="line 2: .*" + problem):
        import_messages(buffer, message_lines([path]), RULE)
    assert buffer.count() == 0
    report = import_messages(buffer, message_lines([path]), RULE, on_error="skip")
    assert report.added == 1
    assert problem in report.skipped[0]


def test_a_function_may_say_what_counts(buffer: ReplayBuffer, tmp_path: Path) -> None:
    def rule(found: dict[str, Any]) -> dict[str, Any] | None:
        if found["score"] is None:
            return None
        return {
            "task": "all",
            "return": found["score"] / 10,
            "success": found["score"] > 7,
            "split": "test",
            "kind": "k",
        }

    path = write(tmp_path / "log.jsonl", line(score=3), line(score=None), line(score=8))
    report = import_messages(buffer, message_lines([path]), LogRule("desk", function=rule))
    assert report.added == 2
    assert report.lines[1].endswith("line 2: left out by the rule")
    assert [(e.return_, e.success, e.task.split, e.task.kind) for e in buffer.episodes()] == [
        (0.3, False, Split.TEST, "k"),
        (0.8, True, Split.TEST, "k"),
    ]
    wrong = LogRule("desk", function=lambda _: {"return": 0.5, "reward": 1})
    with pytest.raises(BufferImportError, match="reward"):
        import_messages(buffer, message_lines([path]), wrong)
    with pytest.raises(ConfigError, match="not found in the working folder"):
        load_rule("json:no_such_function")
    assert load_rule("json:loads") is json.loads


def run(*arguments: str) -> str:
    """What a command prints; it must end well."""
    done = CliRunner().invoke(app, ["buffer", "import", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_bad_line_ends_the_chain_of_its_task(buffer: ReplayBuffer, tmp_path: Path) -> None:
    """Its attempt may be the one that the next reflection is on."""
    lines = [line(), line("t2"), line(score=None), line(score=0.5), line("t2", 0.75), line(score=1, advice="Ask.")]
    path = write(tmp_path / "log.jsonl", *lines)
    assert import_messages(buffer, message_lines([path]), RULE, on_error="skip").added == 5
    found = sorted((e.task.id, e.trial, e.return_) for e in buffer.episodes())
    assert found == [("t1", 0, 0.25), ("t1", 0, 0.5), ("t1", 1, 1.0), ("t2", 0, 0.25), ("t2", 1, 0.75)]
    late = write(tmp_path / "late.jsonl", line("t9"), line("t9", None), line("t9", 1, advice="Ask."))
    report = import_messages(buffer, message_lines([late]), RULE, on_error="skip")
    assert (report.added, len(report.skipped)) == (1, 2)


def test_a_dry_run_says_each_line_and_changes_nothing(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", line(), line(score=1, advice="Ask."), "{")
    buffer = tmp_path / "buffer.sqlite"
    options = ["--environment", "desk", "--task", "metadata.ticket", "--return", "score", "--reflection", "advice"]
    command = ["openai-messages", str(log), "--buffer", str(buffer), *options]
    said = run(*command, "--dry-run")
    assert not buffer.exists()
    assert "line 1: task 't1' (test), first attempt, 2 steps, return 0.25, failure" in said
    assert f"cannot be imported: {log}, line 3: not JSON" in said
    assert "line 2: task 't1' (test), retry 1 after a reflection, 2 steps, return 1, success" in said
    assert "2 episodes would be added" in said
    assert "without --on-error skip, nothing would be added" in said
    assert "2 episodes added" in run(*command, "--on-error", "skip")
    with ReplayBuffer(f"sqlite:///{buffer}") as store:
        assert store.count() == 2
    assert "in the buffer already" in run(*command, "--dry-run")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["jsonl", "--return", "score"], "only for openai-messages"),
        (["openai-messages"], "--environment"),
        (["openai-messages", "--environment", "desk", "--rule", "json:loads", "--task", "t"], "says this already"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, arguments: list[str], problem: str) -> None:
    format, *options = arguments
    command = [format, str(write(tmp_path / "log.jsonl", line())), "--buffer", str(tmp_path / "b.sqlite"), *options]
    done = CliRunner().invoke(app, ["buffer", "import", *command])
    assert done.exit_code == 2
    assert problem in done.output
    assert not (tmp_path / "b.sqlite").exists()
