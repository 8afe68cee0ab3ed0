"""Which conversation lies in which row of the key-value memory, and how much of its next prompt is already there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from retro.models.cache import RowCache

Ids = npt.NDArray[np.int64]


@dataclass(slots=True)
class Place:
    """Where a request's sequence lies in this batch."""

    session: str
    ids: Ids
    known: int
    """Tokens whose keys and values the row already holds: at least the last token is always computed anew."""
    row: int


@dataclass(slots=True)
class _Kept:
    row: int
    ids: Ids


class Sessions:
    """Rows of ``cache``, one a conversation; the least recently used conversation gives way to a new one."""

    def __init__(self, cache: RowCache) -> None:
        self.cache = cache
        self._kept: dict[str, _Kept] = {}  # the least recently used first

    def reserve(self, batch: Sequence[str], rows: int, capacity: int) -> None:
        """Make room for ``batch`` beside the conversations kept, ``rows`` at most, of ``capacity`` tokens each."""
        wanted = len(self._kept) + sum(session not in self._kept for session in batch)
        if wanted > self.cache.rows:
            wanted = max(wanted, 2 * self.cache.rows)
        self.cache.reserve(min(wanted, rows), capacity)

    def place(self, requests: Sequence[tuple[str, Sequence[int]]]) -> list[Place]:
        """Bring the requests' sequences into the rows 0 … n - 1. A session that comes twice is known only once."""
        places = []
        for session, tokens in requests:
            ids = np.asarray(tokens, dtype=np.int64)
            kept = self._kept.pop(session, None) if session else None
            if kept is None:
                places.append(Place(session, ids, 0, -1))
            else:
                places.append(Place(session, ids, min(_common(kept.ids, ids), len(ids) - 1), kept.row))
        self._gather(places)
        return places

    def keep(self, place: Place, fed: Sequence[int]) -> None:
        """Remember a session's row: it now holds the request's tokens and ``fed``, those drawn and fed after them."""
        if place.session:
            ids = np.concatenate([place.ids, np.asarray(fed, dtype=np.int64)])
            self._kept[place.session] = _Kept(place.row, ids)

    def _gather(self, places: list[Place]) -> None:
        """Give every place a row below ``len(places)``; conversations there that are not asked for move away."""
        count = len(places)
        while len(self._kept) + count > self.cache.rows:
            self._kept.pop(next(iter(self._kept)))
        others = {kept.row: kept for kept in self._kept.values()}
        asked = {place.row for place in places}
        holes = [row for row in range(count) if row not in asked]
        holes.sort(key=lambda row: row not in others)  # the occupied ones first: a swap empties them
        free = [row for row in range(count, self.cache.rows) if row not in others and row not in asked]
        moves: list[tuple[int, int]] = []
        width = 0
        for place in places:
            if place.row >= count:
                hole, place.row = place.row, holes.pop(0)
                moves.append((place.row, hole))
                width = max(width, place.known)
        for place in places:
            if place.row < 0:
                place.row = holes.pop(0)
                if place.row in others:
                    moves.append((place.row, free.pop()))
        for left, right in moves:
            if left in others:
                others[left].row = right
                width = max(width, len(others[left].ids))
        if moves:
            here, there = torch.tensor(moves, device=self.cache.device).unbind(1)
            self.cache.swap(here, there, width)


def _common(left: Ids, right: Ids) -> int:
    """The length of the longest common prefix."""
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return int(differs[0]) if len(differs) else length
