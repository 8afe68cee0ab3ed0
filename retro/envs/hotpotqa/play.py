"""One question with ReAct's three actions: open a page, look up words on it, answer (Yao et al. 2022).

The return is the answer's F1, and success is an exact match. Searches and lookups show what ReAct's ``wikienv.py``
shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from retro.envs.base import Environment, EnvironmentFailedError, StepResult
from retro.envs.hotpotqa.answers import exact_match, f1
from retro.envs.hotpotqa.documents import DocumentStore, Page
from retro.envs.hotpotqa.questions import Question

SENTENCES_SHOWN = 5
"""The number of sentences that opening a page shows (ReAct's ``get_page_obs``)."""
ALLOWED = "Allowed is one action at a time: Search[title], Lookup[keyword] or Finish[answer]"
OVER = "The play is over."

_ACTION = re.compile(r"\s*(search|lookup|finish)\s*\[(.*)\][\s.]*", re.IGNORECASE | re.DOTALL)
_MAX_ECHO_CHARS = 100
_MAX_SENTENCE_CHARS = 1_000


def parse_action(action: str) -> tuple[str, str] | None:
    """``Search[a page]`` as ``("search", "a page")``; the argument may contain brackets.

    None for anything else: an unknown action, an empty argument, or two actions.
    """
    match = _ACTION.fullmatch(action)
    if match is None:
        return None
    argument = " ".join(match[2].split())
    return (match[1].lower(), argument) if argument and not _closes_early(argument) else None


def _closes_early(argument: str) -> bool:
    """Whether a bracket closes that was not opened here, so that the action ended and something follows."""
    depth = 0
    for char in argument:
        depth += (char == "[") - (char == "]")
        if depth < 0:
            return True
    return False


class HotpotQA(Environment):
    """One play of one question: ``steps`` actions at most."""

    def __init__(self, question: Question, store: DocumentStore, steps: int = 6) -> None:
        self._question = question
        self._store = store
        self.horizon = steps
        self.reset()

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The play depends on the question alone, so ``seed`` and ``options`` change nothing."""
        self._searched = ""
        self._page: Page | None = None
        self._keyword = ""
        self._results_shown = 0
        self._steps = 0
        self._terminated = False
        self._success = False
        return f"Question: {self._question.text}", {"success": False}

    def step(self, action: str) -> StepResult:
        if self._over:
            return OVER, 0.0, self._terminated, not self._terminated, {"success": self._success}
        observation, reward = self._act(action)
        self._steps += 1
        truncated = not self._terminated and self._over
        return observation, reward, self._terminated, truncated, {"success": self._success}

    def snapshot(self) -> dict[str, Any]:
        return {
            "searched": self._searched,
            "keyword": self._keyword,
            "results_shown": self._results_shown,
            "steps": self._steps,
            "terminated": self._terminated,
            "success": self._success,
        }

    def restore(self, state: Any) -> None:
        self._page = None
        if state["searched"]:
            found = self._store.search(state["searched"])
            if not isinstance(found, Page):
                raise EnvironmentFailedError(f"hotpotqa: there is no page {echo(state['searched'])!r} any more")
            self._page = found
        self._searched = state["searched"]
        self._keyword = state["keyword"]
        self._results_shown = state["results_shown"]
        self._steps = state["steps"]
        self._terminated = state["terminated"]
        self._success = state["success"]

    @property
    def _over(self) -> bool:
        return self._terminated or self._steps >= self.horizon

    def _act(self, action: str) -> tuple[str, float]:
        match parse_action(action):
            case ("search", entity):
                return self._search(entity), 0.0
            case ("lookup", keyword):
                return self._lookup(keyword), 0.0
            case ("finish", answer):
                return self._finish(answer)
        return f"Invalid action: {echo(action) or '(empty)'}. {ALLOWED}.", 0.0

    def _search(self, entity: str) -> str:
        found = self._store.search(entity)
        if not isinstance(found, Page):
            return f"Could not find [{echo(entity)}]. Similar: {found}." if found else _not_found(entity)
        self._searched, self._page = entity, found
        self._keyword, self._results_shown = "", 0
        return " ".join(_cut(sentence) for sentence in [text for text in found.sentences if text][:SENTENCES_SHOWN])

    def _lookup(self, keyword: str) -> str:
        if self._page is None:
            return "No page is open to look something up on. Open one first: Search[title]."
        word = keyword.casefold()
        if word != self._keyword:
            self._keyword, self._results_shown = word, 0
        results = [sentence for sentence in self._page.sentences if word in sentence.casefold()]
        if not results:
            return f"No results on the page {self._page.title!r}."
        if self._results_shown == len(results):
            return "No more results."
        self._results_shown += 1
        return f"(Result {self._results_shown} / {len(results)}) {_cut(results[self._results_shown - 1])}"

    def _finish(self, answer: str) -> tuple[str, float]:
        self._terminated = True
        self._success = exact_match(answer, self._question.answer)
        if self._success:
            return "Answer is CORRECT", 1.0  # also where normalising leaves no word to count an F1 of
        return "Answer is INCORRECT", f1(answer, self._question.answer)


def _not_found(entity: str) -> str:
    return f"Could not find [{echo(entity)}], nor anything similar."


def _cut(sentence: str) -> str:
    """A sentence within the limit; a "sentence" of a live page may be a whole table."""
    return sentence if len(sentence) <= _MAX_SENTENCE_CHARS else f"{sentence[:_MAX_SENTENCE_CHARS]} …"


def echo(text: str) -> str:
    """``text`` on one line of at most 100 printable characters."""
    shown = " ".join("".join(char if char.isprintable() else " " for char in text[: 10 * _MAX_ECHO_CHARS]).split())
    return shown if len(shown) <= _MAX_ECHO_CHARS else f"{shown[: _MAX_ECHO_CHARS - 1]}…"
