"""Logs of conversations in OpenAI's format, as episodes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retro.buffer import ReplayBuffer
from retro.buffer.jsonl import BufferImportError
from retro.buffer.log_rules import LogRule, load_rule
from retro.buffer.message_logs import import_messages, message_lines
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
PLAIN = LogRule("desk", task="metadata.ticket", return_="score")
RULE = replace(PLAIN, reflection="advice")
OPTIONS = ["--environment", "desk", "--task", "metadata.ticket", "--return", "score", "--reflection", "advice"]


def line(ticket: str = "t1", score: object = 0.25, text: str = "A table in Rome, please.", **more: object) -> Any:
    messages = [SYSTEM, {"role": "user", "content": text}, CALL, FOUND, {"role": "assistant", "content": "Sorry."}]
    return {"messages": messages, "metadata": {"ticket": ticket}, "score": score, **more}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines), encoding="utf-8")
    return path


def test_a_conversation_becomes_an_episode(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", line(usage={"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}))
    report = import_messages(buffer, message_lines([path]), PLAIN)
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
        ({"score": 0.5, "metadata": {"ticket": "t1"}}, "has no messages"),
        (line(score=None), "no score"),
        (line(score=1.5), "score must be a number in [0, 1], or true or false, not 1.5"),
        (line(score="high"), "score must be a number in [0, 1], or true or false, not 'high'"),
        ({**line(), "metadata": {}}, "no metadata.ticket"),
        (line([]), "metadata.ticket must be a text that is not empty, or a number, not []"),
        (line(advice=["Look."]), "advice must be a text, not ['Look.']"),
        ('{"score": "0.5\n', "not JSON: Unterminated string starting at line 1"),
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
    path = write(tmp_path / "log.jsonl", line(), line(advice="Ask."), bad)
    with pytest.raises(BufferImportError, match="line 3: .*" + re.escape(problem)):
        import_messages(buffer, message_lines([path]), RULE)
    assert buffer.count() == 0
    report = import_messages(buffer, message_lines([path]), RULE, on_error="skip")
    assert report.added == 2
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


def found_in(buffer: ReplayBuffer) -> list[tuple[str, int, float]]:
    return sorted((e.task.id, e.trial, e.return_) for e in buffer.episodes())


def test_a_bad_line_breaks_the_chain_of_its_task_until_a_success(buffer: ReplayBuffer, tmp_path: Path) -> None:
    """Its attempt may be the one that the next reflection is on, and the next attempt is not a first one."""
    lines = [
        *(line(), line("t2"), line(score=None), line(score=0.5), line("t2", 0.75, advice="Wait.")),
        *(line(score=1, advice="Ask."), line(score=0)),
    ]
    path = write(tmp_path / "log.jsonl", *lines)
    report = import_messages(buffer, message_lines([path]), RULE, on_error="skip")
    assert found_in(buffer) == [("t1", 0, 0.0), ("t1", 0, 0.25), ("t2", 0, 0.25), ("t2", 1, 0.75)]
    bad, *after = report.skipped
    assert bad.endswith("line 3: no score")
    reason = f"it follows {path}, line 3, an attempt at this task that cannot be imported"
    assert after == [f"{path}, line 4: {reason}", f"{path}, line 6: {reason}"]


def test_a_bad_line_that_is_known_to_be_a_success_ends_its_chain(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", line(), {**line(score=1), "messages": []}, line(score=0.5))
    assert import_messages(buffer, message_lines([path]), PLAIN, on_error="skip").added == 2
    assert found_in(buffer) == [("t1", 0, 0.25), ("t1", 0, 0.5)]


@pytest.mark.parametrize("retry", [{"advice": "Ask."}, {}], ids=["reflection", "control"])
@pytest.mark.parametrize("cut", ['{"messages": [{"role"', {**line(), "metadata": {}}], ids=["not JSON", "no task"])
def test_a_line_whose_task_cannot_be_read_breaks_each_open_chain(
    buffer: ReplayBuffer, tmp_path: Path, retry: dict[str, str], cut: object
) -> None:
    """It may be the attempt that a later line retries, at any of the tasks."""
    first = [line("a"), line("b"), line("done", 1)]
    after = [line("a", 0.5, **retry), line("b", 1, **retry), line("done"), line("new"), line("b"), line("a", 1)]
    path = write(tmp_path / "log.jsonl", *first, cut, *after, line("new", 1, advice="Wait."))
    report = import_messages(buffer, message_lines([path]), RULE, on_error="skip")
    assert found_in(buffer) == [
        *(("a", 0, 0.25), ("b", 0, 0.25), ("b", 0, 0.25), ("done", 0, 0.25), ("done", 0, 1.0)),
        *(("new", 0, 0.25), ("new", 1, 1.0)),
    ]
    reason = f"{path}, line 4, which could not be read, may have been an attempt at this task: correct that line"
    for number, said in zip((5, 6, 10), report.skipped[1:], strict=True):
        assert said.startswith(f"{path}, line {number}: {reason}")


def test_a_reflection_without_an_attempt_before_it_may_be_on_the_unreadable_line(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    path = write(tmp_path / "log.jsonl", "{", line(advice="Ask."))
    with pytest.raises(BufferImportError, match="line 1, which could not be read, may have been one"):
        import_messages(buffer, message_lines([path]), RULE)


def test_without_a_path_the_task_of_a_bad_line_is_its_opening(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", line(), line(text="other"), line(score=None), line(text="other", score=1))
    report = import_messages(buffer, message_lines([path]), LogRule("desk", return_="score"), on_error="skip")
    assert (report.added, len(report.skipped), report.controls.better) == (3, 1, 1)


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            replace(PLAIN, reflection="advise"),
            "--reflection: no attempt has a value at advise, .* or leave the option",
        ),
        (replace(PLAIN, task="metadata.tiket"), "--task: no attempt has a value at metadata.tiket"),
        (replace(PLAIN, return_="scores"), "--return: no attempt has a value at scores"),
        (replace(PLAIN, success="solved"), "--success: no attempt has a value at solved"),
    ],
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_path_that_leads_nowhere_in_all_lines_is_refused(
    buffer: ReplayBuffer, tmp_path: Path, rule: LogRule, problem: str, dry_run: bool
) -> None:
    path = write(tmp_path / "log.jsonl", line(), line(advice="Ask."), "{")
    with pytest.raises(BufferImportError, match=problem):
        import_messages(buffer, message_lines([path]), rule, on_error="skip", dry_run=dry_run)
    assert buffer.count() == 0


def test_a_line_without_the_success_that_a_path_names_is_bad(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", line(solved=False), line(score=1))
    with pytest.raises(BufferImportError, match="line 2: no solved"):
        import_messages(buffer, message_lines([path]), replace(PLAIN, success="solved"))


def test_a_dry_run_says_each_line_and_changes_nothing(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", line(), line(score=1, advice="Ask."))
    buffer = tmp_path / "buffer.sqlite"
    command = ["openai-messages", str(log), "--buffer", str(buffer), *OPTIONS]
    said = run(*command, "--dry-run")
    assert not buffer.exists()
    assert "line 1: task 't1' (test), first attempt, 2 steps, return 0.25, failure" in said
    assert "line 2: task 't1' (test), retry 1 after a reflection, 2 steps, return 1, success" in said
    assert said.endswith("2 episodes would be added, 0 there already\n")
    assert "2 episodes added" in run(*command)
    with ReplayBuffer(f"sqlite:///{buffer}") as store:
        assert store.count() == 2
    assert "in the buffer already" in run(*command, "--dry-run")


def test_a_dry_run_ends_as_the_import_would(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", line(), line(score=1, advice="Ask."), "{")
    command = ["openai-messages", str(log), "--buffer", str(tmp_path / "buffer.sqlite"), *OPTIONS]
    done = CliRunner().invoke(app, ["buffer", "import", *command, "--dry-run"])
    assert done.exit_code == 2
    assert f"cannot be imported: {log}, line 3: not JSON" in done.output
    assert "nothing would be added, because of the lines that cannot be imported (1)" in done.output
    assert "would be added, 0 there already" not in done.output
    skipping = run(*command, "--dry-run", "--on-error", "skip")
    assert skipping.endswith("2 episodes would be added, 0 there already\n")
    assert "2 episodes added" in run(*command, "--on-error", "skip")


def test_a_dry_run_sums_up_how_the_retries_went(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl",
        *(line(), line(score=0.5, advice="Ask."), line(score=0.5, advice="Wait."), line(score=0.25)),
        *(line("t2"), line("t2", 0.2, advice="Look."), line("t2", 1)),
    )
    said = run("openai-messages", str(log), "--buffer", str(tmp_path / "b.sqlite"), *OPTIONS, "--dry-run")
    assert (
        "2 first attempts; compared with the attempt before, retries with a reflection: "
        "3 (1 better, 1 equal, 1 worse), without: 2 (1 better, 0 equal, 1 worse)"
    ) in said


def test_a_reflection_that_is_in_the_opening_too_is_counted(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl",
        *(line(), line(advice="Ask the owner.", text="A table. Note from last time: Ask the owner.")),
        *(line("t2"), line("t2", 1, advice="Wait.")),
    )
    command = ["openai-messages", str(log), "--buffer", str(tmp_path / "b.sqlite"), *OPTIONS]
    said = run(*command, "--dry-run")
    assert "line 2: task 't1' (test), retry 1 after a reflection, whose text is in the opening too" in said
    assert "retries whose opening has the text of their reflection: 1. Training would see it twice" in said
    assert "retries whose opening has the text of their reflection: 1." in run(*command)


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


@pytest.mark.parametrize(
    ("bad", "corrected"),
    [
        (line(score=None, won=False), line(score=0.5, won=False)),
        ({**line(score=1, won=True), "messages": [SYSTEM]}, line(score=1, won=True)),
    ],
)
def test_a_line_that_was_skipped_can_be_corrected_and_imported_again(
    buffer: ReplayBuffer, tmp_path: Path, bad: dict[str, Any], corrected: dict[str, Any]
) -> None:
    rule = replace(PLAIN, success="won")
    after = [line(score=1, won=True), line(text="A table in Paris, please.", won=False)]
    path = write(tmp_path / "log.jsonl", bad, *after)
    assert len(import_messages(buffer, message_lines([path]), rule, on_error="skip").skipped) > 0
    write(path, corrected, *after)
    import_messages(buffer, message_lines([path]), rule)
    assert buffer.count() == 3


def test_an_empty_reflection_is_none(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", line(advice=""), line(score=0.5, advice="Look again."), line(advice=" "))
    report = import_messages(buffer, message_lines([path]), RULE)
    assert (report.added, report.reflected.count, report.controls.count) == (3, 1, 1)
