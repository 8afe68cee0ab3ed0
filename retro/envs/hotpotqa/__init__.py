"""HotPotQA's tasks: questions over two pages each (Yang et al. 2018), played by :mod:`retro.envs.hotpotqa.play`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from pydantic import SkipValidation

from retro.config import PositiveInt
from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.hotpotqa.documents import DocumentStore, OfflineDocuments, Page
from retro.envs.hotpotqa.play import SENTENCES_SHOWN, HotpotQA, echo
from retro.envs.hotpotqa.questions import SUFFIXES, Question, read_entries
from retro.envs.hotpotqa.wikipedia import Wikipedia, wikipedia_options
from retro.envs.options import checked
from retro.envs.sources import existing, sources_by_split, split_of
from retro.types import Split, Task

NAME = "hotpotqa"
REMEDY = "get hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json from hotpotqa.github.io"


@dataclass(frozen=True, slots=True)
class _Loaded:
    questions: Mapping[str, Question]
    by_split: Mapping[Split, Sequence[str]]
    store: DocumentStore


class HotpotQATasks(TaskSet):
    """The questions of HotPotQA's files, official JSON or parquet. Nothing is read before a task is asked for.

    A question in several files belongs to the test split's file if that has it, else to validation's, else to train's.
    Splits that name the same file share it (:func:`retro.envs.sources.split_of`).

    Args:
        data: a file of questions, or one for each split.
        documents: further such files, of which only the paragraphs are used, as pages.
        store: where pages come from: ``offline`` from the paragraphs of all files, ``wikipedia`` from a MediaWiki.
        steps: the step limit.
        wikipedia: the fields of :class:`retro.envs.hotpotqa.wikipedia.WikipediaOptions`.

    Raises:
        ValueError: for a wrong option, or a file that does not exist.
    """

    name = NAME

    @checked
    def __init__(
        self,
        data: SkipValidation[str | Mapping[str, str] | None] = None,
        documents: Sequence[str] = (),
        store: Literal["offline", "wikipedia"] = "offline",
        steps: PositiveInt = 6,
        wikipedia: Mapping[str, Any] | None = None,
    ) -> None:
        if not data:
            raise ValueError(f"hotpotqa: data: name a file of questions; {REMEDY}")
        self._paths = {split: _question_file(source) for split, source in sources_by_split(data, NAME).items()}
        self._documents = [_question_file(source) for source in documents]
        self._steps = steps
        options = wikipedia_options(wikipedia or {})
        self.blocking = store == "wikipedia"
        self._wikipedia = Wikipedia(options) if self.blocking else None
        self._loading = Lock()
        self._loaded: _Loaded | None = None

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        loaded = self._load()
        ids = loaded.by_split[split]
        if offset + count > len(ids):
            source = self._paths.get(split)
            of = f"of {source}" if source else f"(data names no file for {split})"
            raise ValueError(
                f"hotpotqa: split {split} has {len(ids):,} questions {of}, {offset + count:,} were asked for"
            )
        return [Task(NAME, task_id, split, loaded.questions[task_id].kind) for task_id in ids[offset : offset + count]]

    def make(self, task: Task) -> HotpotQA:
        return HotpotQA(self._question(task), self._load().store, self._steps)

    def oracle(self, task: Task) -> str:
        """The pages to open, the facts on them and how to find them, and the answer."""
        question = self._question(task)
        titles = dict.fromkeys(fact.page.title for fact in question.facts)
        said = [f"Search[{title}]{_said_there(question, title)}" for title in titles]
        return " ".join((*said, f"The answer is {question.answer}: Finish[{question.answer}]."))

    def close(self) -> None:
        if self._wikipedia is not None:
            self._wikipedia.close()

    def _question(self, task: Task) -> Question:
        questions = self._load().questions
        if task.id not in questions:
            raise UnknownTaskError(f"hotpotqa: no question {echo(task.id)!r} in {', '.join(map(str, self._files()))}")
        return questions[task.id]

    def _files(self) -> dict[Path, list[Split]]:
        """Each file with the splits that share it; that of test comes first."""
        files: dict[Path, list[Split]] = {}
        for split in reversed(Split):
            if split in self._paths:
                files.setdefault(self._paths[split], []).insert(0, split)
        return files

    def _load(self) -> _Loaded:
        with self._loading:
            if self._loaded is None:
                self._loaded = self._read()
            return self._loaded

    def _read(self) -> _Loaded:
        questions: dict[str, Question] = {}
        by_split: dict[Split, list[str]] = {split: [] for split in Split}
        pages: dict[str, Page] = {}
        for path, splits in self._files().items():
            for entry in read_entries(path):
                own = entry.pages()
                question = entry.question(own)
                pages.update((page.title, page) for page in own if page.title not in pages)
                if question.id not in questions:
                    questions[question.id] = question
                    by_split[split_of(question.id, NAME, splits)].append(question.id)
        if self._wikipedia is not None:
            return _Loaded(questions, by_split, self._wikipedia)
        for path in self._documents:
            for entry in read_entries(path):
                pages.update((page.title, page) for page in entry.pages() if page.title not in pages)
        if not pages:
            raise ValueError("hotpotqa: the files have no paragraphs (context) to search; take store: wikipedia")
        return _Loaded(questions, by_split, OfflineDocuments(pages.values()))


def _question_file(source: str) -> Path:
    path = existing(source, NAME, REMEDY).resolve()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"hotpotqa: {source}: a file of questions ends in {' or '.join(SUFFIXES)}")
    return path


def _said_there(question: Question, title: str) -> str:
    """The facts of one page, with a word to look up for each fact that opening the page does not show."""
    said = ""
    for fact in question.facts:
        if fact.page.title == title and fact.index is not None:
            if fact.index >= SENTENCES_SHOWN:
                said += f" Lookup[{_telling_word(fact.page, fact.index)}]"
            said += f' "{fact.page.sentences[fact.index]}"'
    return said


def _telling_word(page: Page, index: int) -> str:
    """The word of a sentence that the fewest earlier sentences contain (the longest such word)."""
    before = [sentence.casefold() for sentence in page.sentences[:index]]
    words = re.findall(r"\w+", page.sentences[index])
    return min(
        words, key=lambda word: (sum(word.casefold() in sentence for sentence in before), -len(word)), default=""
    )
