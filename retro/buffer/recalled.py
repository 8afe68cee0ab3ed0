"""What the actor of an imported episode was probably shown, where nobody recorded it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retro.types import Episode, Recalled

WINDOW = 3
"""How many reflections an actor is assumed to have seen: Reflexion's own number, the default of ``memory.size``."""
_EARLIER = "memory"
"""The key in a root's ``info`` where schema version 1 kept reflections from trials that are not in the buffer."""


class Derivation:
    """Fills in what an actor saw by a rule: the last ``window`` of the reflections that led to its episode.

    These are the reflections between the root and the episode, the episode's own included. Reflections that the root's
    actor knew from trials that are not in the buffer come before them.

    Args:
        window: How many reflections an actor saw.
        get: Looks up an episode by its id, for parents that have not been handed over.
    """

    def __init__(self, window: int, get: Callable[[str], Episode | None]) -> None:
        self._window = window
        self._get = get
        self._paths: dict[str, tuple[str, ...]] = {}

    def path(self, episode: Episode) -> tuple[str, ...]:
        """The texts of the reflections that led to ``episode``, oldest first."""
        new = [episode]
        while (above := new[-1].parent) is not None and above not in self._paths:
            parent = self._get(above)
            if parent is None:
                break
            new.append(parent)
        for node in reversed(new):
            path = _earlier(node) if node.parent is None else self._paths.get(node.parent, ())
            self._paths[node.id] = path if node.reflection is None else (*path, node.reflection.text)
        return self._paths[episode.id]

    def __call__(self, episode: Episode) -> Episode:
        """``episode`` with the entries that its actor saw; ``info["memory"]`` of a root becomes part of these."""
        recalled = Recalled.latest(self.path(episode), self._window)
        of_root = episode.parent is None
        info = {key: value for key, value in episode.info.items() if not (of_root and key == _EARLIER)}
        return replace(episode, recalled=recalled, info=info)


def _earlier(root: Episode) -> tuple[str, ...]:
    texts = root.info.get(_EARLIER, ())
    if isinstance(texts, list):
        return tuple(map(str, texts))
    return root.recalled.entries if root.trial > 0 else ()
