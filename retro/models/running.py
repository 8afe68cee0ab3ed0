"""The samples being drawn: what each has drawn so far, and which of them have ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retro.models.stopping import StopStrings
from retro.types import Sampling

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Generated:
    """One answer: its tokens (the end token, or those of the stop string, included) and their log-probabilities."""

    ids: list[int]
    log_probs: list[float]
    """Nats, of the model at the sampling's temperature, before ``top_p`` (see :func:`retro.models.draws.draw`)."""
    finish_reason: Literal["stop", "length"]


class Running:
    """S samples in decoding. At each step every running one draws one token; one that has ended draws no more.

    Args:
        samplings: of each sample.
        room: tokens that each may draw, at least one (S,).
        ends: tokens that end an answer.
    """

    def __init__(self, samplings: Sequence[Sampling], room: Ints, ends: Collection[int], stops: StopStrings) -> None:
        self._room = room
        self._ids = np.zeros((len(room), int(room.max(initial=0))), dtype=np.int64)  # (S, L)
        self._log_probs = np.zeros(self._ids.shape)  # (S, L)
        self._counts = np.zeros(len(room), dtype=np.int64)  # (S,)
        self._stopped = np.zeros(len(room), dtype=bool)  # (S,)
        self._stop = [sampling.stop for sampling in samplings]
        self._stops = stops
        self._closing = {stop: stops.closing(stop) for stop in set(self._stop) if stop}
        self._ends = np.array(sorted(ends), dtype=np.int64)
        self.samples: Ints = np.arange(len(room))
        """Those still running (N,), in order."""
        self.step = 0
        """Tokens that each of them has drawn."""

    def add(self, tokens: Ints, log_probs: npt.NDArray[np.float64]) -> Ints:
        """Take the next token of each running sample (N,): which of them run on, as places in ``tokens``."""
        samples = self.samples
        self._ids[samples, self.step] = tokens
        self._log_probs[samples, self.step] = log_probs
        self.step += 1
        self._counts[samples] = self.step
        self._stopped[samples] = np.isin(tokens, self._ends)
        for stop, closing in self._closing.items():
            for sample in samples[closing.take(tokens, mode="clip")]:  # a padded vocabulary has more tokens
                if self._stop[sample] == stop and self._stops.found(self._ids[sample, : self.step].tolist(), stop):
                    self._stopped[sample] = True
        going = np.flatnonzero(~self._stopped[samples] & (self.step < self._room[samples]))
        self.samples = samples[going]
        return going

    def results(self) -> list[Generated]:
        """The answers, in the order of the samplings."""
        return [
            Generated(
                self._ids[sample, :count].tolist(),
                self._log_probs[sample, :count].tolist(),
                "stop" if self._stopped[sample] else "length",
            )
            for sample, count in enumerate(self._counts)
        ]
