"""What the actor of an imported episode is taken to have been shown, where nobody recorded it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retro.types import Episode, Recalled

WINDOW = 3
"""The reflections that an actor is taken to have seen: Reflexion's own number, and the default of ``memory.size``."""
_EARLIER = "memory"
"""Schema version 1 kept in ``info["memory"]`` of a root what its actor knew from trials that are not in the buffer."""


class Derivation:
    """The rule: an actor saw the last ``window`` of the reflections on the way to its episode.

    Those are the reflections between the root and the episode, the episode's own included, after what the root's actor
    knew from trials that are not in the buffer.

    Args:
        window: How many an actor saw.
        get: The episode of an id, for parents that :meth:`path` was not asked about before.
    """

    def __init__(self, window: int, get: Callable[[str], Episode | None]) -> None:
        self._window = window
        self._get = get
        self._paths: dict[str, tuple[str, ...]] = {}

    def path(self, episode: Episode) -> tuple[str, ...]:
        """The texts of the reflections on the way to ``episode``, oldest first."""
        unknown = [episode]
        while (above := unknown[-1].parent) is not None and above not in self._paths:
            parent = self._get(above)
            if parent is None:
                break
            unknown.append(parent)
        for node in reversed(unknown):
            path = _earlier(node) if node.parent is None else self._paths.get(node.parent, ())
            self._paths[node.id] = path if node.reflection is None else (*path, node.reflection.text)
        return self._paths[episode.id]

    def __call__(self, episode: Episode) -> Episode:
        """``episode`` with what the rule says; ``info["memory"]`` of a root becomes part of it."""
        recalled = Recalled.latest(self.path(episode), self._window)
        told = episode.parent is None and _EARLIER in episode.info
        info = {key: value for key, value in episode.info.items() if key != _EARLIER} if told else episode.info
        return replace(episode, recalled=recalled, info=info)


def _earlier(root: Episode) -> tuple[str, ...]:
    texts = root.info.get(_EARLIER, ())
    if isinstance(texts, list):
        return tuple(map(str, texts))
    return root.recalled.entries if root.trial > 0 else ()
