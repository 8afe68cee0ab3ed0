"""Assigns rows of the key-value memory to conversations, and decides which of them wait for room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from retro.models.cache import Row, RowPool

Ids = npt.NDArray[np.int64]

_EVICTED = 8
"""Where no conversation can go on, one of so many loses its row: enough for several others to reach their end."""


@dataclass(eq=False, slots=True)
class Conversation:
    row: Row | None = None
    ids: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The tokens whose keys and values the row holds."""
    held: bool = False
    """Whether it says when it ends."""
    named: bool = False
    """Whether it is remembered after an answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """The next turn of a conversation: its name (or none), all tokens so far, and their number with the answer."""

    session: str
    ids: Ids
    need: int


@dataclass(slots=True)
class Placed:
    """A request whose conversation has a row that is long enough."""

    conversation: Conversation
    ids: Ids
    known: int
    """Tokens whose keys and values the row already holds: at least the last token is always computed anew."""
    row: Row


class Sessions:
    """Conversations and their rows.

    A conversation that :meth:`hold` began keeps its row until :meth:`release`, and a new one waits until there is room.
    The row of any other conversation is kept until its room is needed; the least recently used row goes first.
    """

    def __init__(self, pool: RowPool) -> None:
        self.pool = pool
        self._known: dict[str, Conversation] = {}  # the least recently used first
        self._held: dict[str, Conversation] = {}  # the oldest first
        self._ended, self._ended_tokens = 0, 0

    def hold(self, session: str) -> None:
        """Keep the conversation's row until :meth:`release`, also between its requests."""
        conversation = self._known.setdefault(session, Conversation(named=True))
        conversation.held = True
        self._held.setdefault(session, conversation)

    def release(self, session: str) -> None:
        """Free the row of a conversation that has ended."""
        conversation = self._held.pop(session, None)
        self._known.pop(session, None)
        if conversation is None:  # held twice and released before
            return
        if len(conversation.ids):
            self._ended += 1
            self._ended_tokens += len(conversation.ids)
        self._evict(conversation)

    def place(self, requests: Sequence[Request], most: int, force: bool) -> list[Placed | None]:
        """Give rows to at most ``most`` requests; None for those that have to wait.

        Conversations that have begun come first, the oldest of them first. Where there is not room for all, the others
        keep their rows and wait until one has ended. If none of them can continue, the newest ones lose their rows.

        Args:
            force: do not wait for conversations that are held and have no request here.
        """
        found: dict[int, Placed] = {}
        conversations = self._conversations(requests)
        ages = {id(conversation): age for age, conversation in enumerate(self._held.values())}
        order = sorted(
            range(len(requests)),
            key=lambda i: (conversations[i].row is None, ages.get(id(conversations[i]), len(ages))),
        )
        while not found and order:
            self._place(requests, conversations, order, most, found)
            if found:
                break
            waiting = [conversations[i] for i in order if conversations[i].row is not None]
            idle = [other for other in self._held.values() if other.row is not None and other not in waiting]
            if len(waiting) > 1:
                for conversation in waiting[-max(1, len(waiting) // _EVICTED) :]:
                    self._evict(conversation)
            elif idle and force:
                self._evict(idle[-1])
            elif idle:
                break
            else:  # it alone is longer than all the room there is
                self._place(requests, conversations, order, 1, found, beyond_budget=True)
        return [found.get(i) for i in range(len(requests))]

    def keep(self, placed: Placed, fed: Sequence[int]) -> None:
        """Remember that the row now holds the request's tokens and ``fed``, those drawn and fed after them."""
        placed.conversation.ids = np.concatenate([placed.ids, np.asarray(fed, dtype=np.int64)])
        if not placed.conversation.named:
            self._evict(placed.conversation)

    def _conversations(self, requests: Sequence[Request]) -> list[Conversation]:
        """The conversation of each request; None for one without a name, or whose name comes twice."""
        found, seen = [], set()
        for request in requests:
            if request.session and request.session not in seen:
                seen.add(request.session)
                conversation = self._known.pop(request.session, None) or Conversation(named=True)
                self._known[request.session] = conversation
                found.append(conversation)
            else:
                found.append(Conversation())
        return found

    def _place(
        self,
        requests: Sequence[Request],
        conversations: Sequence[Conversation],
        order: Sequence[int],
        most: int,
        found: dict[int, Placed],
        beyond_budget: bool = False,
    ) -> None:
        """Fill ``found`` in ``order``. After the first conversation without room, no other one takes more room."""
        room = True
        chosen = {id(conversations[i]) for i in order[:most]}
        growing = [i for i in order[:most] if _too_short(conversations[i], requests[i].need)]
        demand = Counter(self.pool.capacity(requests[i].need) for i in growing)
        for i in order:
            if len(found) == most:
                break
            request, conversation = requests[i], conversations[i]
            known = min(_common(conversation.ids, request.ids), len(request.ids) - 1)
            if _too_short(conversation, request.need):
                capacity = self.pool.capacity(request.need)
                room = room and (conversation.row is not None or beyond_budget or self._admits(conversation))
                row = self._grown(capacity, demand[capacity], chosen, beyond_budget) if room else None
                demand[capacity] -= 1
                if row is None:
                    room = False
                    continue
                if conversation.row is not None:
                    conversation.row.copy_to(row, known)
                    self.pool.give(conversation.row)
                conversation.row = row
            assert conversation.row is not None
            conversation.ids = conversation.ids[:known]  # should the computation fail
            found[i] = Placed(conversation, request.ids, known, conversation.row)

    def _admits(self, conversation: Conversation) -> bool:
        """Whether there will be room for a new conversation, if all become as long as those before them."""
        if not conversation.held or not self._ended:
            return True
        going = sum(other.row is not None for other in self._held.values())
        mean = self._ended_tokens // self._ended
        return not going or (going + 1) * self.pool.shape.row_bytes(self.pool.capacity(mean)) <= self.pool.budget

    def _grown(self, capacity: int, rows: int, chosen: set[int], beyond_budget: bool) -> Row | None:
        """A row of ``capacity``; conversations that are not held and not ``chosen`` give way."""
        row = self.pool.take(capacity, rows)
        while row is None:
            idle = (c for c in self._known.values() if not c.held and c.row is not None and id(c) not in chosen)
            conversation = next(idle, None)
            if conversation is None:
                return self.pool.take(capacity, beyond_budget=True) if beyond_budget else None
            self._evict(conversation)
            row = self.pool.take(capacity, rows)
        return row

    def _evict(self, conversation: Conversation) -> None:
        if conversation.row is not None:
            self.pool.give(conversation.row)
        conversation.row, conversation.ids = None, conversation.ids[:0]


def _too_short(conversation: Conversation, need: int) -> bool:
    return conversation.row is None or conversation.row.block.capacity < need


def _common(left: Ids, right: Ids) -> int:
    """The length of the longest common prefix."""
    length = min(len(left), len(right))
    differs = np.flatnonzero(left[:length] != right[:length])
    return int(differs[0]) if len(differs) else length
