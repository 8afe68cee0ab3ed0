"""HotPotQA on one core: how quick the offline store is, and how often its similar titles name a page that is needed.

OMP_NUM_THREADS=1 python benchmarks/hotpotqa.py FILE... [--logs reflexion_hotpotqa_trials.parquet]
OMP_NUM_THREADS=1 python benchmarks/hotpotqa.py --invented 7405     # speed alone, at the size of the dev file

FILEs are question files, official JSON or parquet. Logs are trials of a ReAct actor with the columns task_id, agent,
carried_over and trajectory: their Search actions are repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retro.envs.hotpotqa.documents import OfflineDocuments, Page
from retro.envs.hotpotqa.play import HotpotQA, parse_action
from retro.envs.hotpotqa.questions import Question, read_entries

WORDS = 60_000
SENTENCES = 4
"""Of an invented paragraph; in the real ones it is about as many."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and quality of HotPotQA's offline store.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--invented", type=int, metavar="QUESTIONS")
    arguments = parser.parse_args()
    if bool(arguments.files) == bool(arguments.invented):
        parser.error("give question files, or --invented QUESTIONS")
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or [invented(Path(folder) / "invented.json", arguments.invented)]
        questions, store = load(files)
    speed(questions, store)
    if arguments.files:
        ranks_of_questions(questions, store)
    if arguments.logs:
        ranks_of_searches({question.id: question for question in questions}, store, arguments.logs)


def load(files: Iterable[Path]) -> tuple[list[Question], OfflineDocuments]:
    began = time.process_time()
    questions: dict[str, Question] = {}
    pages: list[Page] = []
    for file in files:
        for entry in read_entries(file):
            own = entry.pages()
            question = entry.question(own)
            questions.setdefault(question.id, question)
            pages += own
    store = OfflineDocuments(pages)
    read = time.process_time() - began
    store.ranked("the first query builds the index")
    indexed = time.process_time() - began - read
    print(
        f"{len(questions):,} questions, {len(store):,} pages: read in {read:.2f} s, indexed in {indexed:.2f} s of CPU"
    )
    return list(questions.values()), store


def speed(questions: list[Question], store: OfflineDocuments) -> None:
    exact = [f"Search[{fact.page.title}]" for question in questions for fact in question.facts][:5_000]
    similar = [f"Search[{question.text}]" for question in questions][:2_000]
    play = HotpotQA(questions[0], store, steps=10**9)
    for name, actions in (("exact titles", exact), ("lookups", ["Lookup[the]"] * 5_000), ("similar titles", similar)):
        play.step(exact[0])
        began = time.process_time()
        for action in actions:
            play.step(action)
        print(f"{name}: {len(actions) / (time.process_time() - began):,.0f} steps a second of CPU")


def ranks_of_questions(questions: list[Question], store: OfflineDocuments) -> None:
    found = [needed(question) & set(store.ranked(question.text)) for question in questions]
    one = sum(bool(titles) for titles in found) / len(questions)
    both = sum(titles == needed(question) for titles, question in zip(found, questions, strict=True)) / len(questions)
    print(f"raw questions: a needed page is among the five for {one:.1%}, all needed pages for {both:.1%}")


def ranks_of_searches(questions: Mapping[str, Question], store: OfflineDocuments, logs: Path) -> None:
    searches = logged_searches(logs)
    outcomes: Counter[str] = Counter()
    for (task_id, entity), times in searches.items():
        if task_id in questions:
            outcomes[outcome(questions[task_id], store, entity)] += times
    total = outcomes.total()
    print(f"logged searches: {total:,} ({len(searches):,} different)")
    for name, times in outcomes.most_common():
        print(f"  {name}: {times / total:.1%}")


def logged_searches(logs: Path) -> Counter[tuple[str, str]]:
    from pyarrow import parquet

    searches: Counter[tuple[str, str]] = Counter()
    for row in parquet.read_table(logs, columns=["agent", "carried_over", "task_id", "trajectory"]).to_pylist():
        if row["agent"] == "react" and not row["carried_over"]:
            for action in re.findall(r"^Action \d+: (.*)$", row["trajectory"], re.MULTILINE):
                parsed = parse_action(action)
                if parsed and parsed[0] == "search":
                    searches[row["task_id"], parsed[1]] += 1
    return searches


def outcome(question: Question, store: OfflineDocuments, entity: str) -> str:
    found = store.search(entity)
    if isinstance(found, Page):
        return "opens a page" if found.title == entity else "opens a page whose title is written otherwise"
    if not found:
        return "nothing similar"
    return (
        "similar titles, a needed page among them" if needed(question) & set(found) else "similar titles, none needed"
    )


def needed(question: Question) -> set[str]:
    return {fact.page.title for fact in question.facts}


def invented(path: Path, count: int) -> Path:
    """A file in the official layout: ten pages of its own for each question, words as frequent as Zipf's law says."""
    draw = random.Random(0)
    vocabulary = [f"w{number:x}" for number in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    total = sum(weights)
    cumulative = []
    so_far = 0.0
    for weight in weights:
        so_far += weight / total
        cumulative.append(so_far)

    def text(words: int) -> str:
        return " ".join(draw.choices(vocabulary, cum_weights=cumulative, k=words))

    def entry(number: int) -> dict[str, Any]:
        context = [[f"{text(2)} {number} {place}", [f"{text(22)}." for _ in range(SENTENCES)]] for place in range(10)]
        facts = [[context[place][0], 0] for place in (0, 1)]
        fields = {"_id": f"q{number}", "question": text(16), "answer": text(2), "type": "bridge"}
        return fields | {"supporting_facts": facts, "context": context}

    path.write_text(json.dumps([entry(number) for number in range(count)]))
    return path


if __name__ == "__main__":
    main()
