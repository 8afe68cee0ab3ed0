"""Responses that were sampled for the next step (``ppo.lag``), kept in a checkpoint until they are learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from retro.artifacts import write_json
from retro.buffer.views import Context
from retro.reading import read_json
from retro.training.policy.groups import Group, Response
from retro.types import from_json, to_json

AHEAD_FILE = "ahead.json"


def gather_ahead(groups: Sequence[Group]) -> list[Response]:
    """The responses of all processes, by slot and index. To be called on each of them."""
    own = [response for group in groups for response in group.responses]
    return sorted(gather_object(own), key=lambda response: (response.slot, response.index))


def save_ahead(responses: Sequence[Response], folder: Path) -> None:
    write_json(folder / AHEAD_FILE, to_json(responses))


def load_ahead(folder: Path, contexts: Mapping[int, Context]) -> list[Group]:
    """The groups of this process, whose contexts are given by slot. The inverse of :func:`save_ahead`."""
    saved = [from_json(Response, value) for value in read_json(folder / AHEAD_FILE)]
    return [
        Group(slot, context, tuple(response for response in saved if response.slot == slot))
        for slot, context in contexts.items()
    ]
