"""HotPotQA's files in their three layouts; a broken one is named, with the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from retro.envs.hotpotqa.documents import Page
from retro.envs.hotpotqa.questions import Entry, Fact, Question, read_entries

OFFICIAL: dict[str, Any] = {
    "_id": "q1",
    "question": "Who runs  Salt &\nPepper?",
    "answer": "Ada",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Salt &amp; Pepper", 1], ["Ada", 0], ["Ada", 7], ["Elsewhere", 0]],
    "context": [
        ["Salt &amp; Pepper", ["Salt & Pepper is a shop.", " It is  run by Ada.\n"]],
        ["Ada", ["Ada is a cook."]],
        ["Empty", []],
        ["Blank", [" "]],
    ],
}
SALT = Page("Salt & Pepper", ("Salt & Pepper is a shop.", "It is run by Ada."))
ADA = Page("Ada", ("Ada is a cook.",))


def structs() -> dict[str, Any]:
    facts = [{"title": title, "sent_id": place} for title, place in OFFICIAL["supporting_facts"]]
    context = [{"title": title, "sentences": sentences} for title, sentences in OFFICIAL["context"]]
    return {"id": "q1", **{key: OFFICIAL[key] for key in ("question", "answer", "type")}} | {
        "supporting_facts": facts,
        "context": context,
    }


def columns() -> dict[str, Any]:
    titles, places = zip(*OFFICIAL["supporting_facts"], strict=True)
    names, sentences = zip(*OFFICIAL["context"], strict=True)
    return structs() | {
        "supporting_facts": {"title": list(titles), "sent_id": list(places)},
        "context": {"title": list(names), "sentences": list(sentences)},
    }


def write(folder: Path, layout: str) -> Path:
    path = folder / f"{layout}.{'json' if layout == 'official' else 'parquet'}"
    if layout == "official":
        path.write_text(json.dumps([OFFICIAL]))
    else:
        parquet.write_table(pyarrow.Table.from_pylist([structs() if layout == "structs" else columns()]), path)
    return path


@pytest.mark.parametrize("layout", ["official", "structs", "columns"])
def test_the_three_layouts_say_the_same(tmp_path: Path, layout: str) -> None:
    (entry,) = read_entries(write(tmp_path, layout))
    pages = entry.pages()
    assert pages == [SALT, ADA]
    facts = (Fact(SALT, 1), Fact(ADA, 0), Fact(ADA, None), Fact(Page("Elsewhere", ()), None))
    assert entry.question(pages) == Question("q1", "Who runs Salt & Pepper?", "Ada", "bridge", facts)


def test_what_a_file_does_not_say_is_left_open() -> None:
    bare = Entry("file", 0, {"id": "q", "question": "Who?", "answer": "Ada", "type": None, "context": None})
    assert bare.pages() == []
    assert bare.question([]) == Question("q", "Who?", "Ada", "question", ())


def test_an_unknown_place_of_a_fact_is_none() -> None:
    entry = Entry("file", 0, OFFICIAL | {"supporting_facts": [["Ada", -1]]})
    assert entry.question(entry.pages()).facts == (Fact(ADA, None),)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": None}, r"questions\.json: entry 3 \(q1\): question is missing"),
        ({"question": 5}, r"entry 3 \(q1\): question is not a text"),
        ({"question": " "}, r"entry 3 \(q1\): question is not a text"),
        ({"answer": None}, r"entry 3 \(q1\): answer is missing; the official test questions have none"),
        ({"_id": 7}, r"entry 3: _id is not a text"),
        ({"context": "text"}, r"entry 3 \(q1\): context is not a list of pairs \(title, sentences\)"),
        ({"context": [["Ada"]]}, r"context is not a list of pairs"),
        ({"context": [["Ada", "Ada is a cook."]]}, r"context is not a list of titles with their sentences"),
        ({"context": [["Ada", [1]]]}, r"context is not a list of titles"),
        ({"context": [{"title": "Ada"}]}, r"context is not a list of titles"),
        ({"context": {"title": ["Ada"], "sentences": []}}, r"context is not a list of pairs"),
        ({"supporting_facts": [["Ada", "0"]]}, r"entry 3 \(q1\): supporting_facts is not a list of titles"),
        ({"supporting_facts": [[None, 0]]}, r"supporting_facts is not a list of titles"),
    ],
)
def test_a_wrong_entry_is_named(change: dict[str, Any], says: str) -> None:
    entry = Entry("questions.json", 3, OFFICIAL | change)
    with pytest.raises(ValueError, match=says):
        entry.question(entry.pages())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("cut.json", b'[{"_id": "q1"', r"cut\.json: entry 0 is not JSON .*download it again"),
        ("latin.json", b'["caf\xe9"]', r"latin\.json: not UTF-8"),
        ("object.json", b'{"data": []}', r"object\.json: .*not a JSON array; a list of questions is expected"),
        ("words.json", b'["q1"]', r"words\.json: entry 0 is not an object"),
        ("deep.json", b"[" * 100_000, r"deep\.json: entry 0: nested deeper than 100 levels"),
        ("long.json", b"[" + b"9" * 5_000 + b"]", r"long\.json: entry 0: .*an integer beyond 64 bits"),
        ("cut.parquet", b"PAR1", r"cut\.parquet is not a Parquet file: .*download it again"),
        ("empty.parquet", b"", r"empty\.parquet is not a Parquet file"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        list(read_entries(path))
