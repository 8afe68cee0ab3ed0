"""Responses that were sampled for the next step (``ppo.lag``), kept in a checkpoint until they are learnt from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from retro.artifacts import write_atomically
from retro.buffer.views import Context
from retro.reading import parse_json, read_lines
from retro.training.policy.groups import Group, Response
from retro.types import from_json, to_json

AHEAD_FILE = "ahead.jsonl"


def gather_ahead(groups: Sequence[Group]) -> list[Response]:
    """The responses of all processes, by slot and index. To be called on each of them."""
    own = [response for group in groups for response in group.responses]
    return sorted(gather_object(own), key=lambda response: (response.slot, response.index))


def save_ahead(responses: Sequence[Response], folder: Path) -> None:
    write_atomically(folder / AHEAD_FILE, "".join(f"{json.dumps(to_json(response))}\n" for response in responses))


def load_ahead(folder: Path, contexts: Mapping[int, Context]) -> list[Group]:
    """The groups of this process, whose contexts are given by slot. The inverse of :func:`save_ahead`."""
    path = folder / AHEAD_FILE
    saved = [from_json(Response, parse_json(line, str(path))) for _, line in read_lines(path)]
    return [
        Group(slot, context, tuple(response for response in saved if response.slot == slot))
        for slot, context in contexts.items()
    ]
