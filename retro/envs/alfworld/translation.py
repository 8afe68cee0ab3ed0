"""The planner's translation of a game's problem, which takes most of the time that opening a game takes (runs in a
worker process). It is kept in the user's cache folder, so that each game is translated once and not at each play.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import logging
import zlib
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version

import fast_downward

from retro.layout import cache_folder

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Counts the changes of what a kept translation holds."""


@dataclass(frozen=True, slots=True)
class Translation:
    """What a play needs of a translated problem, as plain JSON."""

    sas: str
    """The problem in Fast Downward's SAS format."""
    parents_of: dict[str, list[str]]
    """The supertypes of each type."""
    type_of: dict[str, str]
    """The type of each object."""
    facts: list[tuple[str, list[str]]]
    """What holds at the start: a predicate and its objects."""
    parameters_of: dict[str, list[tuple[str, str]]]
    """The parameters of each action: name and type."""

    def changing(self) -> set[str]:
        """The predicates of the facts that actions change."""
        return {line[5 : line.index("(")] for line in self.sas.splitlines() if line.startswith("Atom ")}


@lru_cache(maxsize=16)
def translate(domain: str, problem: str) -> Translation:
    """The translation of a problem: of an earlier call, of the cache folder, or a new one."""
    key = "\0".join((str(_FORMAT), version("textworld"), version("fast-downward-textworld"), domain, problem))
    file = cache_folder() / "alfworld" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json.gz"
    try:
        return Translation(**json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, ValueError, TypeError, zlib.error):  # not there, or not whole
        translation = _translated(domain, problem)
    from retro.artifacts import write_atomically  # with the config, which a worker does not need otherwise

    try:
        write_atomically(file, gzip.compress(json.dumps(asdict(translation)).encode(), compresslevel=6, mtime=0))
    except OSError as error:
        logger.info("the translation of a game cannot be kept in %s (%s): it is made at each play", file, error)
    return translation


def _translated(domain: str, problem: str) -> Translation:
    gc.disable()  # it makes some 100,000 objects and none of them is garbage: looking for it takes a fifth of the time
    try:
        task, sas = fast_downward.pddl2sas(domain, problem)
    finally:
        gc.enable()
    atoms = [fact for fact in task.init if isinstance(fact, fast_downward.translate.pddl.conditions.Atom)]
    return Translation(
        sas=sas,
        parents_of={kind.name: list(kind.supertype_names) for kind in reversed(task.types)},  # "object" comes twice
        type_of={entity.name: entity.type_name for entity in task.objects},
        facts=[(atom.predicate, list(atom.args)) for atom in atoms if atom.predicate != "="],
        parameters_of={
            action.name: [(parameter.name, parameter.type_name) for parameter in action.parameters]
            for action in task.actions
        },
    )
