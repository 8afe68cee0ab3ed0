"""HotpotQA's question files: the official JSON, and the same fields as parquet.

An entry's paragraphs may have any of three layouts: ``[[title, [sentence, …]], …]`` (the official JSON),
``[{"title": …, "sentences": […]}, …]``, and ``{"title": […], "sentences": [[…], …]}`` (the hub's parquet).
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.envs.hotpotqa.documents import Page
from retro.reading import UnreadableError, read_array

SUFFIXES = (".json", ".parquet")
UNKNOWN_KIND = "question"


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence that supports the answer, by its index on its page; None if the file does not say which."""

    page: Page
    index: int | None


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer and facts."""

    id: str
    text: str
    answer: str
    kind: str
    """``bridge``, ``comparison``, or ``question`` if the file does not say."""
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One unchecked entry of a question file."""

    source: str
    number: int
    fields: Mapping[str, Any]

    def pages(self) -> list[Page]:
        """Its paragraphs with text; titles without HTML escapes.

        Raises:
            ValueError: naming the file, the entry and the field.
        """
        pages = []
        for title, sentences in self._pairs("context", "title", "sentences"):
            is_page = isinstance(title, str) and isinstance(sentences, list)
            if not is_page or not all(isinstance(sentence, str) for sentence in sentences):
                raise self._wrong("context", "is not a list of titles with their sentences")
            pages.append(Page(html.unescape(title), tuple(" ".join(sentence.split()) for sentence in sentences)))
        return [page for page in pages if any(page.sentences)]

    def question(self, pages: list[Page]) -> Question:
        """Its question; ``pages`` are its own paragraphs.

        Raises:
            ValueError: naming the file, the entry and the field.
        """
        by_title = {page.title: page for page in pages}
        facts = []
        for title, index in self._pairs("supporting_facts", "title", "sent_id"):
            if not isinstance(title, str) or not isinstance(index, int):
                raise self._wrong("supporting_facts", "is not a list of titles with indices of sentences")
            page = by_title.get(html.unescape(title), Page(html.unescape(title), ()))
            facts.append(Fact(page, index if 0 <= index < len(page.sentences) else None))
        return Question(
            id=self._text("_id" if "_id" in self.fields else "id"),
            text=self._text("question"),
            answer=self._text("answer"),
            kind=self._text("type") if self.fields.get("type") else UNKNOWN_KIND,
            facts=tuple(facts),
        )

    def _text(self, name: str) -> str:
        text = self.fields.get(name)
        if text is None and name == "answer":
            raise self._wrong(name, "is missing; the official test questions have none, use the dev file")
        if not isinstance(text, str) or not text.strip():
            raise self._wrong(name, "is missing" if text is None else "is not a text")
        return " ".join(text.split())

    def _pairs(self, name: str, first: str, second: str) -> list[tuple[Any, Any]]:
        value = self.fields.get(name)
        if value is None:
            return []
        if isinstance(value, dict):
            left, right = value.get(first), value.get(second)
            if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
                return list(zip(left, right, strict=True))
        if isinstance(value, list):
            pairs = [(item.get(first), item.get(second)) if isinstance(item, dict) else item for item in value]
            if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
                return [(pair[0], pair[1]) for pair in pairs]
        raise self._wrong(name, f"is not a list of pairs ({first}, {second})")

    def _wrong(self, name: str, what: str) -> ValueError:
        known = self.fields.get("_id", self.fields.get("id"))
        called = f" ({known})" if isinstance(known, str) else ""
        return ValueError(f"hotpotqa: {self.source}: entry {self.number}{called}: {name} {what}")


def read_entries(path: Path) -> Iterator[Entry]:
    """The entries of a ``.json`` or ``.parquet`` file, numbered from 0.

    Raises:
        ValueError: if the file is not what its suffix says, or an entry is not an object.
    """
    entries = _parquet(path) if path.suffix == ".parquet" else _json(path)
    for number, fields in enumerate(entries):
        if not isinstance(fields, dict):
            raise ValueError(f"hotpotqa: {path}: entry {number} is not an object with question, answer and context")
        yield Entry(str(path), number, fields)


def _json(path: Path) -> Iterator[Any]:
    try:
        yield from read_array(path)
    except (UnreadableError, OSError) as error:
        raise ValueError(
            f"hotpotqa: {error}; a list of questions is expected, as hotpot_dev_distractor_v1.json: download it again"
        ) from error


def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"hotpotqa: {path} is not a Parquet file: {reason}; download it again") from error
