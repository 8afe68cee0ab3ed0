"""Seeded damage to files: of bytes, of the values in JSON and YAML, of templates, and of the files themselves."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "x", "x" * 100_000, "\x00", "\ud800", "é" * 50, "../../etc/passwd", "/etc/passwd", "a\nb", "2024-99-99"),
    *("{{ 7 * 7 }}", "%s%n", "__import__('os').getcwd()", "os:getcwd", "-rf", "~", "http://127.0.0.1:9/"),
    *([], [[]], ["x"] * 1000, {}, {"": ""}, {"__class__": "x"}, {"$ref": "#"}),
)
"""What stands in the place of a value."""
TEXTS = (
    "9" * 5000,
    "-" + "9" * 400,
    "1e999",
    "NaN",
    "[" * 20_000,
    "[" * 20_000 + "]" * 20_000,
    '{"a":' * 20_000,
    '"' + "\\ud800" + '"',
    "2024-99-99",
    "0x" + "f" * 40,
    "1:60:60",
    '"' + "y" * 3_000_000 + '"',
)
"""What stands in the place of a value, as it is written: no JSON library says it."""
YAML_TEXTS = (
    "&a [*a]",
    "[&a0 [1,1,1,1,1,1,1,1,1], " + ", ".join(f"&a{i + 1} [{','.join([f'*a{i}'] * 9)}]" for i in range(12)) + "]",
    "!!python/object/apply:os.getcwd []",
    "!!binary x",
    "!!timestamp x",
    "? {a: b}",
    "*missing",
    "<<: 1",
    ".inf",
    ".nan",
)
TEMPLATES = (
    "{{ lipsum(n=100000) }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'x'.ljust(9999999999) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "{{ 'x'|center(9999999999) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(200) }}",
    "{% set x = 'xxxxxxxx' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "{% set x = 'xxxxxxxx' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "{% for s in steps recursive %}{{ loop(steps) }}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ missing }}",
    "{{ 1 / 0 }}",
    "{{ steps[0].nothing.more }}",
    "{{ opening.encode('utf-99') }}",
    "{% include '/etc/passwd' %}",
    "{% extends 'actor.jinja' %}",
    "{% import 'reflection.jinja' as r %}",
    "{{",
    "{% if %}",
    "{% endfor %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if true %}" * 500 + "{% endif %}" * 500,
    "{{ " + "-" * 20_000 + "1 }}",
    "{{ " + " ~ ".join(["opening"] * 20_000) + " }}",
    "{{ [opening] * 1000000000 }}",
    "{{ steps|map('upper')|list }}",
    "{{ range(99999)|map('string')|join(opening) }}",
    "{{ dict(a=1)|tojson }}",
    "{{ opening|wordwrap(0) }}",
)

Damage = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def shorten(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def remove(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * rng.randrange(1, 5) + data[end:]


def insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice([b"\x00", b"\xff\xfe", b"\xed\xa0\x80", rng.randbytes(20)]) + data[place:]


def encode(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-32", "cp037", "utf-8-sig"]), "replace")


def empty(rng: random.Random, data: bytes) -> bytes:
    return rng.choice([b"", b" ", b"\n", b"null", b"[]", b"{}", b"0", b'""'])


BYTES: tuple[Damage, ...] = (flip, shorten, remove, repeat, insert, encode, empty)


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(BYTES)(rng, data) if data else rng.randbytes(10)


def damage_tree(rng: random.Random, tree: Any, dump: Callable[[Any], str], texts: Sequence[str] = TEXTS) -> bytes:
    """``tree`` written with one value, or one key, that is not what it should be."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    kind = rng.choice(["value", "value", "text", "text", "delete", "rename", "add"])
    parent, key = rng.choice(places)
    mark = "HOSTILE"
    if kind == "value":
        parent[key] = rng.choice(VALUES)
    elif kind == "text":
        parent[key] = mark
    elif kind == "delete":
        del parent[key]
    elif isinstance(parent, dict):
        parent[f"{key}s" if kind == "rename" else "more"] = parent.pop(key) if kind == "rename" else rng.choice(VALUES)
    else:
        parent.insert(key, rng.choice(VALUES))
    written = dump(tree)
    return (
        written.replace(json.dumps(mark), rng.choice(texts))
        .replace(mark, rng.choice(texts))
        .encode("utf-8", "surrogatepass")
    )


FILES = ("missing", "folder", "link", "loop", "random", "huge", "secret", "pipe")


def damage_file(rng: random.Random, path: Path, outside: Path, ways: Sequence[str] = FILES) -> None:
    """Put something else in a file's place, or bytes of another kind into it."""
    match rng.choice(ways):
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "link":
            path.unlink()
            path.symlink_to(outside)
        case "loop":
            path.unlink()
            path.symlink_to(path)
        case "random":
            path.write_bytes(rng.randbytes(rng.randrange(1, 5000)))
        case "huge":
            with path.open("r+b") as file:
                file.truncate(2**33)  # sparse: it takes no disk
        case "secret":
            path.chmod(0)


def damage_template(rng: random.Random, text: str) -> str:
    """A template with a hostile piece in it, at the start, at the end, or at a line's end."""
    lines = text.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(TEMPLATES))
    return "".join(lines)


def _places(tree: Any) -> Any:
    """Every (container, key) of a tree."""
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)
