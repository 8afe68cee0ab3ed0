"""The readers of text, JSON and YAML: what they refuse, and that they are quick about it."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retro import reading
from retro.reading import (
    DOCUMENT_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    UnreadableError,
    parse_json,
    parse_yaml,
    read_array,
    read_json,
    read_lines,
    read_text,
    read_yaml,
)

INTEGERS = st.integers(min_value=-(2**63), max_value=2**63 - 1)
TEXTS = st.text(st.characters(codec="utf-8"))
TREES = st.recursive(
    st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@given(TREES)
def test_json_reads_back_what_json_writes(tree: object) -> None:
    assert parse_json(json.dumps(tree)) == tree
    assert parse_json(json.dumps(tree, ensure_ascii=False).encode()) == tree


@given(TREES)
def test_yaml_reads_back_what_our_config_is_written_with(tree: object) -> None:
    assert parse_yaml(yaml.safe_dump(tree)) == tree


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 20_000, "nested deeper"),
        ("[" * 150 + "]" * 150, "nested deeper"),
        ("1e999", "not a finite number"),
        ("[NaN]", "not a finite number"),
        ("-Infinity", "not a finite number"),
        ("9" * 5_000, "beyond 64 bits"),
        (str(2**63), "beyond 64 bits"),
        (str(-(2**63) - 1), "beyond 64 bits"),
        (r'"\ud800"', "half of a surrogate pair"),
        (r'{"\udc00": 1}', "half of a surrogate pair"),
        ('{"a": 1', "line 1, column 8"),
        ("", "not JSON"),
        (b'"\xff"', "not UTF-8 at byte 1"),
        ('"a"'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_json_that_is_refused(text: str | bytes, problem: str) -> None:
    with pytest.raises(UnreadableError, match=f"^answer: .*{problem}"):
        parse_json(text, "answer")


def test_json_that_is_longer_than_its_limit_is_not_parsed() -> None:
    with pytest.raises(UnreadableError, match="longer than 10 bytes"):
        parse_json("1" * 11, limit=10)


def test_half_surrogates_pass_where_they_are_asked_for() -> None:
    assert parse_json(r'"\ud800"', half_surrogates=True) == "\ud800"


DOUBLING = "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
MERGING = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}\n" for i in range(40))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 20_000, "nested deeper"),
        ("- " * 20_000, "nested deeper"),
        ("? " * 20_000, "nested deeper"),
        (DOUBLING, "aliases counted"),
        (MERGING, "aliases counted"),
        ("[" + "1, " * (MAX_NODES + 1) + "]", f"more than {MAX_NODES:,} values"),
        ("&a [*a]", "refers to itself"),
        ("&a {b: [*a]}", "refers to itself"),
        (".inf", "not a finite number"),
        (".nan", "not a finite number"),
        ("1.0e+999", "not a finite number"),
        ("9" * 5_000, "beyond 64 bits"),
        (str(2**63), "beyond 64 bits"),
        ("0x" + "f" * 16, "beyond 64 bits"),
        (r'"\ud800"', "half of a surrogate pair"),
        ("{no: 1}", "the key False is not text"),
        ("!!int word", "not YAML"),
        ("!!bool word", "not YAML"),
        ("!!timestamp word", "not YAML.*timestamp"),
        ("!!binary word", "not YAML.*binary"),
        ("!!python/object/apply:os.getcwd []", "not YAML.*python/object"),
        ("a: [", "not YAML.*line 1"),
        ("a: \x00", "not YAML"),
        ("x" * (DOCUMENT_BYTES + 1), "longer than"),
    ],
)
def test_yaml_that_is_refused(text: str, problem: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match=f"^settings: .*{problem}"):
            parse_yaml(text, "settings")
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_yaml_has_the_types_of_json() -> None:
    text = "{date: 2024-01-01, bad: 2024-99-99, at: 2024-01-01 10:00:00, none: null, f: 1.5, n: [1, true], s: '1'}"
    assert parse_yaml(text) == {
        "date": "2024-01-01",
        "bad": "2024-99-99",
        "at": "2024-01-01 10:00:00",
        "none": None,
        "f": 1.5,
        "n": [1, True],
        "s": "1",
    }


def test_aliases_and_merges_of_a_sane_size_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("nested", ["[" * MAX_DEPTH + "]" * MAX_DEPTH])
def test_the_deepest_that_is_read(nested: str) -> None:
    assert parse_json(nested) == parse_yaml(nested)


def test_a_file_is_named_in_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a: \xe9")
    for read in (read_text, read_json, read_yaml):
        with pytest.raises(UnreadableError, match=f"{file}: not UTF-8 at byte 3"):
            read(file)
    file.write_text("[", encoding="utf-8")
    for parse in (read_json, read_yaml):
        with pytest.raises(UnreadableError, match=f"{file}: not "):
            parse(file)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing")


def test_a_pipe_and_a_folder_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UnreadableError, match="not a file"):
            read_text(path)


def test_line_ends_and_a_byte_order_mark_are_no_part_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_text(tmp_path / "file") == "a: 1\nb: 2\n"
    assert read_yaml(tmp_path / "file") == {"a": 1, "b": 2}


def test_a_line_that_is_too_long_is_refused_alone(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"[1]\n\n" + b"[" + b"2" * 1000 + b"]\n[3]\n" + b"4" * 11)
    lines = dict(read_lines(file, limit=10))
    assert list(lines) == [1, 3, 4, 5]
    assert parse_json(lines[1], limit=10) == [1] and parse_json(lines[4], limit=10) == [3]
    for number in (3, 5):
        with pytest.raises(UnreadableError, match="longer than 10 bytes"):
            parse_json(lines[number], limit=10)


@given(entries=st.lists(st.dictionaries(TEXTS, TREES, max_size=3), max_size=6), chunk=st.integers(1, 9))
def test_an_array_is_read_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, entries: list[object], chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_bytes(json.dumps(entries, ensure_ascii=False).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK_CHARS", chunk)
        assert list(read_array(path)) == entries


def test_garbage_in_a_long_array_is_noticed_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_CHUNK_CHARS", 10)
    path = tmp_path / "array.json"
    path.write_bytes(b'[{"a": 1}, {"b": "' + b"x" * 100_000 + b"\xff")
    with pytest.raises(UnreadableError, match=r"array\.json: entry 1 is not JSON"):
        list(read_array(path, limit=50))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a JSON array"),
        (b"{}", "not a JSON array"),
        (b"[1, 2", "entry 2 is not JSON"),
        (b"[1, " + b"[" * 100_000, "entry 1: nested deeper"),
        (b"[1, " + b"[" * 150 + b"]" * 150 + b"]", "entry 1: nested deeper"),
        (b"[1, NaN]", "entry 1: NaN: not a finite number"),
        (b"[1, " + b"9" * 5_000 + b"]", "entry 1: .*beyond 64 bits"),
        (b'[1, "\\ud800"]', "entry 1: .*half of a surrogate"),
        (b'[1, "\xff"]', "not UTF-8"),
    ],
)
def test_what_an_array_may_not_hold_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "array.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match=rf"array\.json: .*{problem}"):
        list(read_array(path))


def test_a_folder_is_not_an_array(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="a folder or a device"):
        list(read_array(tmp_path))
