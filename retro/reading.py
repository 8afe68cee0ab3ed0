"""Reads text, JSON and YAML from outside, within limits; every file and every answer of a server is read here.

The values can be walked by recursion, written again and stored: text can be encoded as UTF-8, numbers are finite,
integers fit into 64 bits, nesting is shallow, and aliases of YAML cannot multiply the content. No function reads more
than its limit into memory. This module imports nothing of ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import yaml
from pydantic import AfterValidator, Field, ValidationError

DOCUMENT_BYTES = 2**20
"""The largest file of settings: a config, ``retro.json``, a template."""
DATA_BYTES = 2**24
"""The largest file, line or answer of data: a trajectory, an episode."""
MAX_DEPTH = 100
"""Levels of nested lists and mappings."""
MAX_NODES = 20_000
"""Values of a YAML document; an alias counts as all that it stands for."""
MAX_INTEGER = 2**63 - 1
_SHOWN_PROBLEMS = 10
_UNKNOWN = dict.fromkeys(("extra_forbidden", "unexpected_keyword_argument"), "unknown key")
"""What to say instead of pydantic's messages, which call keys inputs (of a model) or arguments (of a dataclass)."""
_SHOWN_CHARS = 200
_CHUNK_CHARS = 2**22
_INTEGER_CHARS = 100
"""Python's own limit is 4,300 digits, in quadratic time."""


class UnreadableError(ValueError):
    """A text that cannot be read: the message names its file or other origin, and the problem."""


def read_text(path: Path, limit: int = DOCUMENT_BYTES) -> str:
    """A UTF-8 file's text, its line ends as ``\\n``.

    Raises:
        UnreadableError: if it is not a regular file, longer than ``limit`` bytes, or not UTF-8.
        OSError: if it cannot be opened.
    """
    if path.exists() and not path.is_file():
        raise UnreadableError(f"{path}: a folder or a device, not a file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    return _decoded(content, str(path), limit).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, limit: int = DOCUMENT_BYTES) -> Any:
    """The value in a JSON file.

    Raises:
        UnreadableError: see :func:`read_text` and :func:`parse_json`.
        OSError: if it cannot be opened.
    """
    return parse_json(read_text(path, limit), str(path), limit)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; None if it is empty.

    Raises:
        UnreadableError: see :func:`read_text` and :func:`parse_yaml`.
        OSError: if it cannot be opened.
    """
    return parse_yaml(read_text(path), str(path))


def read_lines(path: Path, limit: int = DATA_BYTES) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1. A longer line than ``limit`` bytes is cut to
    ``limit + 1`` bytes, which :func:`parse_json` refuses.

    Raises:
        OSError: if it cannot be opened.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(limit + 1):
            number += 1
            rest = line
            while len(rest) > limit and not rest.endswith(b"\n"):
                rest = file.readline(limit + 1)
            if line.strip():
                yield number, line


def read_array(path: Path, limit: int = DATA_BYTES) -> Iterator[Any]:
    """The entries of a file with one JSON array of any length; only a few are in memory at once.

    Args:
        limit: The longest entry, in characters.

    Raises:
        UnreadableError: if it is not UTF-8 or not an array, ends too early, or has an entry that :func:`parse_json`
            would refuse.
        OSError: if it cannot be opened.
    """
    if path.exists() and not path.is_file():
        raise UnreadableError(f"{path}: a folder or a device, not a file")
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for entry in _entries(file, limit):
                _check(entry)
                yield entry
                number += 1
    except UnicodeDecodeError:
        raise UnreadableError(f"{path}: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UnreadableError(f"{path}: entry {number} is not JSON ({error.msg})") from None
    except RecursionError:
        raise UnreadableError(f"{path}: entry {number}: {_TOO_DEEP}") from None
    except UnreadableError as error:
        raise UnreadableError(f"{path}: entry {number}: {error}") from None


def parse_json(text: str | bytes, origin: str = "", limit: int = DATA_BYTES, half_surrogates: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        text: Bytes are UTF-8.
        origin: What errors call it; may be empty.
        limit: The longest text, in bytes (for a str, in characters).
        half_surrogates: Allow half of a surrogate pair in strings, which JSON can express and UTF-8 cannot.

    Raises:
        UnreadableError: if it is too long, not JSON, nested deeper than ``MAX_DEPTH``, or holds a number that is not
            finite or an integer beyond 64 bits.
    """
    try:
        text = _decoded(text, "", limit) if isinstance(text, bytes) else text
        _refuse(len(text) > limit, f"longer than {limit:,} bytes")
        tree = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)
        _check(tree, half_surrogates)
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
        raise UnreadableError(_named(origin, problem)) from None
    except RecursionError:
        raise UnreadableError(_named(origin, _TOO_DEEP)) from None
    except UnreadableError as error:
        raise UnreadableError(_named(origin, str(error))) from None
    return tree


def parse_yaml(text: str, origin: str = "") -> Any:
    """The value of a YAML text, in JSON's types: dates and times are text.

    Raises:
        UnreadableError: if it is not YAML, has tags or keys that are not text, is nested deeper than ``MAX_DEPTH``, has
            more than ``MAX_NODES`` values, refers to itself, or holds a number that is not finite or an integer beyond
            64 bits.
    """
    try:
        _refuse(len(text) > DOCUMENT_BYTES, f"longer than {DOCUMENT_BYTES:,} bytes")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node)
            tree = loader.construct_document(node)
        finally:
            loader.dispose()
        _check(tree)
    except UnreadableError as error:
        raise UnreadableError(_named(origin, str(error))) from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # such as ``!!int word``
        raise UnreadableError(_named(origin, f"not YAML: {' '.join(str(error).split())}")) from None
    return tree


def problems(error: ValidationError) -> str:
    """The first ten problems that pydantic found, on one line: keys and reasons."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        cut(f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {_UNKNOWN.get(item['type'], item['msg'])}")
        for item in found[:_SHOWN_PROBLEMS]
    ]
    rest = [f"and {len(found) - _SHOWN_PROBLEMS:,} more"] if len(found) > _SHOWN_PROBLEMS else []
    return "; ".join([*shown, *rest]).replace(": Value error, ", ": ")


def word(value: str) -> str:
    """Refuse a name that a terminal or a shell command would read as something else.

    Raises:
        ValueError: if ``value`` is not printable, or looks like an option.
    """
    if not value.isprintable() or value.startswith("-"):
        raise ValueError("must be printable and must not start with -")
    return value


Word = Annotated[str, Field(max_length=4096), AfterValidator(word)]
"""A name from outside that is printed or passed on."""


def cut(text: str, chars: int = _SHOWN_CHARS) -> str:
    """``text`` for a message: it is cut with an ellipsis, and characters that are not printable are escaped."""
    shown = text if len(text) <= chars else f"{text[:chars]}…"
    return escaped(shown)


def escaped(text: str, kept: str = "") -> str:
    """``text`` for a terminal: characters that are not printable are escaped, except for those in ``kept``."""
    return "".join(char if char in kept or char.isprintable() else repr(char)[1:-1] for char in text)


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"more than {MAX_NODES:,} values, aliases counted as what they stand for"


def without_user(url: str) -> str:
    """``url`` for a message: asterisks replace a user and a password in it."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('//')[0]}//***@{after}" if at else url


def encodable(text: str) -> str:
    """``text`` with a question mark for half a surrogate pair, which UTF-8, files, servers and tokenizers refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _named(origin: str, problem: str) -> str:
    return f"{origin}: {problem}" if origin else problem


def _refuse(condition: bool, problem: str) -> None:
    if condition:
        raise UnreadableError(problem)


def _decoded(content: bytes, origin: str, limit: int) -> str:
    if len(content) > limit:
        raise UnreadableError(_named(origin, f"longer than {limit:,} bytes"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(_named(origin, f"not UTF-8 at byte {error.start}")) from None


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _INTEGER_CHARS else MAX_INTEGER + 1
    _refuse(not -MAX_INTEGER - 1 <= value <= MAX_INTEGER, f"{cut(text, 20)}: an integer beyond 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    _refuse(not math.isfinite(value), f"{cut(text, 20)}: not a finite number")
    return value


def _entries(file: TextIO, limit: int) -> Iterator[Any]:
    decode = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_number).raw_decode
    text, position, ended = file.read(_CHUNK_CHARS), 0, False
    _refuse(not text.lstrip().startswith("["), "not a JSON array")
    position = text.index("[") + 1
    while True:
        while position < len(text) and (text[position].isspace() or text[position] == ","):
            position += 1
        if text[position : position + 1] == "]":
            return
        try:
            entry, end = decode(text, position)
        except json.JSONDecodeError:
            if ended or len(text) - position > limit:
                raise
            chunk = file.read(_CHUNK_CHARS)
            text, position, ended = text[position:] + chunk, 0, not chunk
        else:
            yield entry
            position = end


def _check(tree: Any, half_surrogates: bool = False) -> None:
    """Refuse deep nesting, keys that JSON does not have, and text that UTF-8 cannot express."""
    level = [tree]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for key in value:
                    _refuse(not isinstance(key, str), f"the key {key!r} is not text: put it in quotes")
                deeper += value
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str) and not half_surrogates and value != encodable(value):
                raise UnreadableError(f"{cut(repr(value), 40)}: half of a surrogate pair, which is not a character")
        if not deeper:
            return
        level = deeper
    raise UnreadableError(_TOO_DEEP)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in JSON's types."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        _refuse(self._depth > MAX_DEPTH, _TOO_DEEP)
        _refuse(self._nodes > MAX_NODES, _TOO_MANY)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def json_int(self, node: yaml.ScalarNode) -> int:
        _refuse(len(node.value) > _INTEGER_CHARS, f"{cut(node.value, 20)}: an integer beyond 64 bits")
        return _integer(str(self.construct_yaml_int(node)))

    def json_float(self, node: yaml.ScalarNode) -> float:
        return _number(str(self.construct_yaml_float(node)))


_PLAIN = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    f"{_PLAIN}{name}": yaml.SafeLoader.yaml_constructors[f"{_PLAIN}{name}"]
    for name in ("null", "bool", "str", "seq", "map")
} | {
    f"{_PLAIN}int": _Loader.json_int,
    f"{_PLAIN}float": _Loader.json_float,
    None: yaml.SafeLoader.yaml_constructors[None],  # any other tag is an error that names it
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _count(root: yaml.Node) -> None:
    """Refuse a document that refers to itself, or whose aliases stand for too much."""
    sizes: dict[int, int] = {}
    under_way: set[int] = set()

    def size(node: yaml.Node) -> int:  # no deeper than MAX_DEPTH, unless it refers to itself
        if id(node) in sizes:
            return sizes[id(node)]
        _refuse(id(node) in under_way, "refers to itself by an alias")
        under_way.add(id(node))
        total = 1
        if isinstance(node, yaml.SequenceNode):
            total += sum(map(size, node.value))
        elif isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(value) for key, value in node.value)
        _refuse(total > MAX_NODES, _TOO_MANY)
        sizes[id(node)] = total
        return total

    size(root)
