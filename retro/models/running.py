"""The sequences being generated: what each has drawn, which have ended, and which row of the memory each lies in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retro.models.draws import RowSamplings
from retro.models.stopping import StopStrings
from retro.types import Sampling

Ints = npt.NDArray[np.int64]

_LEAVE_AT = 0.25
"""Rows that have ended leave once the running ones are at most this part of the batch: to move a running row (an
exchange of two rows in all layers) costs about as much as two tokens of one."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: its tokens (the end token, or those of the stop string, included) and their log-probabilities."""

    ids: list[int]
    log_probs: list[float]
    """Nats, of the model at the sampling's temperature, before ``top_p`` (see :func:`retro.models.draws.draw`)."""
    finish_reason: Literal["stop", "length"]


class Running:
    """A batch of sequences in decoding; the arrays ``tokens``, ``positions``, ``drawn`` and ``samplings`` are by row.

    Args:
        sequences: all tokens of each so far; the last one is fed next.
        context: the longest sequence that the model can take (tokens).
        ends: tokens that end an answer.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int] | Ints],
        samplings: Sequence[Sampling],
        context: int,
        ends: Collection[int],
        stops: StopStrings,
    ) -> None:
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self._room = np.minimum([sampling.max_tokens for sampling in samplings], context - lengths)  # (N,)
        self._ids = np.zeros((len(sequences), int(self._room.max(initial=0))), dtype=np.int64)  # (N, L)
        self._log_probs = np.zeros(self._ids.shape)  # (N, L)
        self._counts = np.zeros(len(sequences), dtype=np.int64)  # (N,)
        self._stopped = np.zeros(len(sequences), dtype=bool)  # (N,)
        self._all_samplings = RowSamplings.of(samplings)
        self._stop = [sampling.stop for sampling in samplings]
        self._stops = stops
        self._closing = _closing(self._stop, stops)
        self._ends = np.array(sorted(ends), dtype=np.int64)
        self._owner = np.arange(len(sequences))  # row → sequence, for all rows
        self._done = np.zeros(len(sequences), dtype=bool)  # by row, of the rows still in the batch
        self.tokens: Ints = np.array([sequence[-1] for sequence in sequences], dtype=np.int64)
        self.positions: Ints = lengths - 1
        self.samplings = self._all_samplings

    @property
    def count(self) -> int:
        """Rows still in the batch: 0 … count - 1."""
        return len(self.tokens)

    @property
    def drawn(self) -> Ints:
        """Tokens drawn so far, by row."""
        return self._counts[self._owner[: self.count]]

    def add(self, tokens: Ints, log_probs: npt.NDArray[np.float64]) -> None:
        """Take the next token of each row. A row that has ended feeds the token before again, which changes nothing,
        until it leaves."""
        rows = np.flatnonzero(~self._done)
        owners, new = self._owner[rows], tokens[rows]
        places = self._counts[owners]
        self._ids[owners, places] = new
        self._log_probs[owners, places] = log_probs[rows]
        self._counts[owners] += 1
        self._stopped[owners] = np.isin(new, self._ends)
        for group, closing in self._closing.items():
            for owner in owners[closing[new]]:
                if self._stop[owner] == group and self._stops.found(
                    self._ids[owner, : self._counts[owner]].tolist(), group
                ):
                    self._stopped[owner] = True
        done = self._stopped[owners] | (self._counts[owners] >= self._room[owners])
        self._done[rows] = done
        going = rows[~done]
        self.tokens[going] = tokens[going]
        self.positions[going] += 1

    def leave(self) -> list[tuple[Ints, Ints, int]]:
        """Let ended rows go, if enough have ended: the rows to be exchanged (here, there, places of each) so that the
        running ones come first."""
        running = np.flatnonzero(~self._done)
        if len(running) > _LEAVE_AT * self.count:
            return []
        holes = np.flatnonzero(self._done[: len(running)])
        movers = running[running >= len(running)]
        width = int(self.positions.max(initial=-1)) + 1
        for values in (self.tokens, self.positions, self._owner):
            values[holes], values[movers] = values[movers], values[holes]
        self.tokens, self.positions = self.tokens[: len(running)], self.positions[: len(running)]
        self._done = np.zeros(len(running), dtype=bool)
        self.samplings = self._all_samplings.take(self._owner[: len(running)])
        return [(holes, movers, width)] if len(holes) else []

    def results(self) -> tuple[list[Generated], list[int]]:
        """The answers, and the row in which each sequence ended."""
        answers = [
            Generated(
                self._ids[owner, :count].tolist(),
                self._log_probs[owner, :count].tolist(),
                "stop" if self._stopped[owner] else "length",
            )
            for owner, count in enumerate(self._counts)
        ]
        return answers, np.argsort(self._owner).tolist()


def _closing(stop: Sequence[tuple[str, ...]], stops: StopStrings) -> dict[tuple[str, ...], npt.NDArray[np.bool_]]:
    return {group: stops.closing(group) for group in set(stop) if group}
