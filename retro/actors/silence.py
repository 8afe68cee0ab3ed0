"""Answers that say nothing: why, and how many of a run's are too many."""

from __future__ import annotations

import logging
from collections import Counter

from retro.config import ConfigError
from retro.wire.answers import Silence

logger = logging.getLogger(__name__)

LEAST_ANSWERS = 40
"""Before that nothing is said: the first answers of a run are all to the same kind of prompt."""
WARNED_SHARE = 0.05
STOPPED_SHARE = 0.5
_REASONS = {
    Silence.FILTERED: "the server's content filter or the model refused; change the server's filter, or take another "
    "model",
    Silence.TOOL_CALL: "the model called a tool instead; serve it without tools and without a tool parser",
    Silence.THOUGHT: "actor.max_tokens ended while the model was thinking; raise it, or turn thinking off "
    "(actor.extra_body)",
    Silence.EMPTY: "the text was empty, or a stop string came first; look at actor.endpoint and the server's chat "
    "template",
}


class SilenceMonitor:
    """Counts the silent ones among a server's answers: above 5 % a warning, above half an error.

    Args:
        name: What messages call the actor.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._answers = 0
        self._silent: Counter[Silence] = Counter()
        self._warned = False

    def count(self, silence: Silence | None) -> None:
        """Count one answer; None if it has a text.

        Raises:
            ConfigError: once more than half of at least ``LEAST_ANSWERS`` say nothing.
        """
        self._answers += 1
        if silence is None:
            return
        self._silent[silence] += 1
        share = self._silent.total() / self._answers
        if self._answers < LEAST_ANSWERS or share <= WARNED_SHARE:
            return
        [(reason, _)] = self._silent.most_common(1)
        silent = f"{self._silent.total()} of {self._answers} answers say nothing"
        text = f"{self._name}: {silent}; most often {_REASONS[reason]}"
        if share > STOPPED_SHARE:
            raise ConfigError(f"{text}. What was played is kept")
        if not self._warned:
            self._warned = True
            logger.warning("%s", text)
