"""Conversations in OpenTelemetry's GenAI traces, read from OTLP files in JSON (semantic conventions from 1.37 on).

A file holds export requests (``resourceSpans``), one or one a line, as the collector's file exporter writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from retro.reading import UnreadableError, cut, parse_json, read_json, read_lines

CONVERSATION, INPUT, OUTPUT = "gen_ai.conversation.id", "gen_ai.input.messages", "gen_ai.output.messages"
INSTRUCTIONS = "gen_ai.system_instructions"
OPERATION, CALLS = "gen_ai.operation.name", (None, "chat", "generate_content", "text_completion")
"""Spans of these operations are calls of a model."""
TOKENS = {"prompt_tokens": "gen_ai.usage.input_tokens", "completion_tokens": "gen_ai.usage.output_tokens"}
MOST_BYTES = 1 << 28
"""Of a file that is one document."""
_LISTS = (INPUT, OUTPUT, INSTRUCTIONS)


@dataclass
class Conversation:
    """The spans of one conversation: those of the traces that name the same ``gen_ai.conversation.id``, or of one trace
    that names none."""

    name: str
    path: Path
    """The first file that has a part of it."""
    spans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def began(self) -> int:
        first: int = min(span["began"] for span in self.spans)
        return first

    def line(self) -> dict[str, Any]:
        """The messages and the attributes, as a line of a log would have them.

        An agent sends what was said before with each call, so the last call of a model has all messages. (Spans of
        whole agents may have messages, too, which lack the steps.) The attributes are those of the resource, the spans
        and their events; a later span's count where several have one.

        Raises:
            UnreadableError: if no call has messages, or they are malformed.
        """
        ordered = sorted(self.spans, key=lambda span: (span["ended"], span["began"]))
        calls = [span["attributes"] for span in ordered if span["attributes"].get(OPERATION) in CALLS]
        calls = [call for call in calls if INPUT in call]
        if not calls:
            raise UnreadableError(
                f"no call of a model has {INPUT}: instrumentations record messages only if they are told to"
            )
        last = calls[-1]
        values: dict[str, Any] = {}
        for span in ordered:
            values |= span["attributes"]
            for event in span["events"]:
                values |= event
        system = [{"role": "system", "parts": last[INSTRUCTIONS]}] if last.get(INSTRUCTIONS) else []
        messages = _messages([*system, *_list(last, INPUT), *_list(last, OUTPUT)[:1]])
        usage = {name: sum(_count(call.get(key, 0)) for call in calls) for name, key in TOKENS.items()}
        rest = {key: value for key, value in values.items() if key not in _LISTS}
        return rest | {"messages": messages, "usage": usage}


def conversations(paths: Sequence[Path]) -> list[Conversation]:
    """The conversations of all files, in the order in which they began.

    A trace without any ``gen_ai`` attribute, such as a health check, is left out.

    Raises:
        UnreadableError: naming the file, if it is not OTLP in JSON.
    """
    spans = [(path, span) for path in paths for span in _spans(path)]
    named = [span for _, span in spans if CONVERSATION in span["attributes"]]
    of_trace = {span["trace"]: str(span["attributes"][CONVERSATION]) for span in named}
    found: dict[str, Conversation] = {}
    for path, span in spans:
        name = of_trace.get(span["trace"], span["trace"])
        found.setdefault(name, Conversation(name, path)).spans.append(span)
    about_models = [one for one in found.values() if any(map(_about_models, one.spans))]
    return sorted(about_models, key=lambda one: (one.began, one.name))


def _about_models(span: Mapping[str, Any]) -> bool:
    return any(key.startswith("gen_ai.") for key in span["attributes"])


def _spans(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for request in _requests(path):
            for resource in _items(request, "resourceSpans"):
                shared = _attributes(_object(resource, "resource"))
                for scope in _items(resource, "scopeSpans"):
                    for span in _items(scope, "spans"):
                        yield {
                            "trace": str(span.get("traceId") or ""),
                            "began": _count(span.get("startTimeUnixNano") or 0),
                            "ended": _count(span.get("endTimeUnixNano") or 0),
                            "attributes": shared | _attributes(span),
                            "events": [_attributes(event) for event in _items(span, "events")],
                        }
    except UnreadableError as error:
        raise UnreadableError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _requests(path: Path) -> Iterator[dict[str, Any]]:
    """Export requests: the whole file is one, or each line is."""
    for tree in _trees(path):
        if not isinstance(tree, dict) or "resourceSpans" not in tree:
            raise UnreadableError(f"{path}: not OTLP in JSON: the key resourceSpans is missing")
        yield tree


def _trees(path: Path) -> Iterator[Any]:
    lines = read_lines(path)
    number, first = next(lines, (1, b""))
    try:
        tree = parse_json(first)
    except UnreadableError:  # a document of many lines
        yield read_json(path, MOST_BYTES)
        return
    yield tree
    for number, line in lines:
        yield parse_json(line, f"{path}: line {number}")


def _items(tree: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = tree.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UnreadableError(f"{key} must be a list of objects")
    return value


def _object(tree: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = tree.get(key) or {}
    if not isinstance(value, dict):
        raise UnreadableError(f"{key} must be an object")
    return value


def _attributes(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {str(item.get("key")): _value(item.get("value")) for item in _items(tree, "attributes")}


def _value(value: Any) -> Any:
    """An ``AnyValue`` of OTLP as plain JSON; messages may also be a string of JSON."""
    if not isinstance(value, dict) or len(value) != 1:
        return None
    [(kind, held)] = value.items()
    match kind:
        case "intValue":
            return _count(held)
        case "arrayValue":
            return [_value(item) for item in _items(held, "values")] if isinstance(held, dict) else None
        case "kvlistValue":
            listed = _items(held, "values") if isinstance(held, dict) else []
            return {str(item.get("key")): _value(item.get("value")) for item in listed}
        case _:
            return held


def _list(attributes: Mapping[str, Any], key: str) -> list[Any]:
    value = attributes.get(key) or []
    value = parse_json(value, key) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise UnreadableError(f"{key} must be a list of messages")
    return value


def _messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """The messages in OpenAI's format. A tool call without an id is answered by the next answer without one."""
    found: list[dict[str, Any]] = []
    unnamed_calls, unnamed_answers = count(), count()
    for message in messages:
        parts = message.get("parts") if isinstance(message, dict) else None
        parts = parse_json(parts, "parts") if isinstance(parts, str) else parts
        if not isinstance(message, dict) or not isinstance(parts, list):
            raise UnreadableError(f"a message must have a role and parts: {cut(repr(message))}")
        texts: list[str] = []
        calls: list[dict[str, Any]] = []
        for part in parts:
            match part:
                case {"type": "text" | "reasoning", "content": str(text)}:
                    texts.append(text)
                case {"type": "tool_call", "name": str(name)}:
                    called = {"name": name, "arguments": _text(part.get("arguments", {}))}
                    id = part.get("id") or f"unnamed-{next(unnamed_calls)}"
                    calls.append({"id": id, "type": "function", "function": called})
                case {"type": "tool_call_response"}:
                    id = part.get("id") or f"unnamed-{next(unnamed_answers)}"
                    answer = part.get("response", part.get("result", ""))
                    found.append({"role": "tool", "tool_call_id": id, "content": _text(answer)})
                case {"type": str(kind)}:
                    texts.append(f"[{kind}]")
                case _:
                    raise UnreadableError(f"a part must have a type: {cut(repr(part))}")
        if texts or calls:
            said = {"role": message.get("role"), "content": "\n".join(texts)}
            found.append({**said, "tool_calls": calls} if calls else said)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(value: Any) -> int:
    """OTLP writes 64-bit integers as strings."""
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UnreadableError(f"not an integer: {cut(repr(value))}") from None
