"""OpenTelemetry's GenAI traces, as OTLP's JSON has them, as episodes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro.buffer import ReplayBuffer
from retro.buffer.jsonl import BufferImportError
from retro.buffer.log_rules import LogRule
from retro.buffer.message_logs import import_messages, trace_conversations
from retro.buffer.otel_traces import CONVERSATION, INPUT, INSTRUCTIONS, OUTPUT
from retro.types import Usage

ASKED = {"role": "user", "parts": [{"type": "text", "content": "A table in Rome, please."}]}
CALLED = {
    "role": "assistant",
    "parts": [
        {"type": "reasoning", "content": "I look it up."},
        {"type": "tool_call", "id": "c1", "name": "find", "arguments": {"city": "Rome"}},
    ],
}
FOUND = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": {"tables": 0}}]}
ANSWERED = {"role": "assistant", "parts": [{"type": "text", "content": "Sorry."}], "finish_reason": "stop"}
SYSTEM = [{"type": "text", "content": "You book tables."}]
RULE = LogRule("desk", task="ticket.id", return_="gen_ai.evaluation.score.value")


def any_value(value: Any) -> dict[str, Any]:
    """As OTLP writes it: 64-bit integers as strings, objects and lists by kind."""
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": attributes(value)}}
    return {"stringValue": value}


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": any_value(value)} for key, value in values.items()]


def span(trace: str, at: int, values: dict[str, Any], score: float | None = None) -> dict[str, Any]:
    told = [] if score is None else [{"attributes": attributes({"gen_ai.evaluation.score.value": score})}]
    times = {"startTimeUnixNano": str(at), "endTimeUnixNano": str(at + 1)}
    return {"traceId": trace, "spanId": f"{trace}-{at}", **times, "attributes": attributes(values), "events": told}


def call(input: Any, output: Any, **more: Any) -> dict[str, Any]:
    return {"gen_ai.operation.name": "chat", INPUT: input, OUTPUT: output, INSTRUCTIONS: SYSTEM, **more}


def request(*spans: dict[str, Any], ticket: str = "T-17") -> dict[str, Any]:
    resource = {"attributes": attributes({"service.name": "desk", "ticket.id": ticket})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]}


def attempt(trace: str, at: int, score: float, write: Callable[[Any], Any] = json.dumps) -> list[dict[str, Any]]:
    """Two calls of a model in one trace, under the span of the agent, which has the score."""
    tokens = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 3}
    return [
        span(trace, at + 2, call(write([ASKED, CALLED, FOUND]), write([ANSWERED]), **tokens)),
        span(trace, at, call(write([ASKED]), write([CALLED]), **tokens)),
        span(trace, at + 4, {"gen_ai.operation.name": "invoke_agent"}, score),
    ]


@pytest.mark.parametrize("write", [json.dumps, lambda value: value], ids=["text", "structure"])
def test_the_last_call_of_a_trace_has_the_whole_conversation(
    buffer: ReplayBuffer, tmp_path: Path, write: Callable[[Any], Any]
) -> None:
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(request(*attempt("a", 1, 0.25, write)), indent=2))
    assert import_messages(buffer, trace_conversations([path]), RULE).added == 1
    [episode] = buffer.episodes()
    assert episode.trajectory.opening == "You book tables.\n\nA table in Rome, please."
    assert [(s.thought, s.action, s.observation) for s in episode.trajectory.steps] == [
        ("I look it up.", 'find({"city": "Rome"})', '{"tables": 0}'),
        ("", "Sorry.", ""),
    ]
    assert (episode.task.id, episode.return_, episode.success) == ("T-17", 0.25, False)
    assert episode.usage == Usage(20, 6)


def test_conversations_of_many_lines_and_files_are_in_the_order_of_time(buffer: ReplayBuffer, tmp_path: Path) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    later = [*attempt("c", 300, 1.0), *attempt("b", 200, 0.5)]
    one.write_text("".join(json.dumps(request(part)) + "\n" for part in later))
    two.write_text(json.dumps(request(*attempt("a", 100, 0.25))) + "\n")
    assert import_messages(buffer, trace_conversations([one, two]), RULE).added == 3
    assert [(e.trial, e.return_) for e in buffer.episodes()] == [(0, 0.25), (1, 0.5), (2, 1.0)]


def test_spans_of_tools_and_agents_belong_to_the_conversation_and_other_traces_do_not(
    buffer: ReplayBuffer, tmp_path: Path
) -> None:
    """An agent's own span has only the first question and the last answer; a tool's has no conversation."""
    agent = {"gen_ai.operation.name": "invoke_agent", INPUT: [ASKED], OUTPUT: [ANSWERED], CONVERSATION: "x"}
    first = span("a", 2, call([ASKED], [CALLED], **{CONVERSATION: "x"}))
    tool = span("a", 4, {"gen_ai.operation.name": "execute_tool"}, 0.5)
    database = span("a", 5, {"db.system.name": "postgresql"})
    second = span("a", 6, call([ASKED, CALLED, FOUND], [ANSWERED], **{CONVERSATION: "x"}))
    health = span("h", 3, {"http.route": "/healthz"})
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    one.write_text(json.dumps(request(first, tool, health, database)))
    two.write_text(json.dumps(request(second, span("a", 1, agent))))
    report = import_messages(buffer, trace_conversations([one, two]), RULE)
    assert (report.added, len(report.lines)) == (1, 1)
    [episode] = buffer.episodes()
    assert len(episode.trajectory.steps) == 2
    assert episode.return_ == 0.5


def test_spans_of_several_traces_may_be_one_conversation(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    first = span("a", 1, call([ASKED], [CALLED], **{CONVERSATION: "x"}))
    second = span("b", 5, call([ASKED, CALLED, FOUND], [ANSWERED], **{CONVERSATION: "x"}), 0.5)
    path.write_text(json.dumps(request(first, second)))
    assert import_messages(buffer, trace_conversations([path]), RULE).added == 1
    assert [len(episode.trajectory.steps) for episode in buffer.episodes()] == [2]


def test_calls_without_ids_are_answered_in_their_order(buffer: ReplayBuffer, tmp_path: Path) -> None:
    calls = [{"type": "tool_call", "name": name, "arguments": "x"} for name in ("one", "two")]
    answers = [{"type": "tool_call_response", "response": text} for text in ("first", "second")]
    messages = [ASKED, {"role": "assistant", "parts": calls}, {"role": "tool", "parts": answers}]
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(request(span("a", 1, call(messages, []), 0.5))))
    import_messages(buffer, trace_conversations([path]), RULE)
    [episode] = buffer.episodes()
    assert [(s.action, s.observation) for s in episode.trajectory.steps] == [("one(x)", "first"), ("two(x)", "second")]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"gen_ai.operation.name": "chat"}, "no call of a model has gen_ai.input.messages"),
        (call("{", []), "not JSON"),
        (call("{}", []), "must be a list of messages"),
        (call([{"role": "user"}], []), "must have a role and parts"),
        (call([{"role": "user", "parts": ["x"]}], []), "a part must have a type"),
        (call([ASKED], [ANSWERED], **{"gen_ai.usage.input_tokens": "many"}), "not an integer"),
    ],
)
def test_a_bad_conversation_is_named(
    buffer: ReplayBuffer, tmp_path: Path, values: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(request(span("a", 1, values, 0.5))))
    with pytest.raises(BufferImportError, match=f"conversation a: .*{problem}"):
        import_messages(buffer, trace_conversations([path]), RULE)
    assert buffer.count() == 0


def test_a_conversation_without_a_score_is_named(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(request(*attempt("a", 1, 0.25), span("b", 9, call([ASKED], [ANSWERED])))))
    with pytest.raises(BufferImportError, match=r"conversation b: no gen_ai\.evaluation\.score\.value"):
        import_messages(buffer, trace_conversations([path]), RULE)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"traces": []}',
        '{"resourceSpans": [1]}',
        '{"resourceSpans": [{"resource": "x"}]}',
        '{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "soon"}]}]}]}',
        "{",
        "x\ny",
    ],
)
def test_what_is_no_trace_is_refused(buffer: ReplayBuffer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "traces.json"
    path.write_text(text)
    with pytest.raises(BufferImportError, match=re.escape(str(path))):
        import_messages(buffer, trace_conversations([path]), RULE)


def test_null_stands_for_an_absent_list(buffer: ReplayBuffer, tmp_path: Path) -> None:
    path = tmp_path / "traces.json"
    path.write_text('{"resourceSpans": [{"resource": null, "scopeSpans": [{"spans": [{"attributes": null}]}]}]}')
    assert import_messages(buffer, trace_conversations([path]), RULE).added == 0
