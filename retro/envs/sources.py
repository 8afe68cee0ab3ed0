"""Which tasks of a file, a folder or a published split are for what.

An environment's ``data`` names a source for each of our splits. Splits that name one source share it: a task's part is
decided by a hash of its id, so that it never moves, whatever else the source holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from retro.reading import cut
from retro.types import Split, derive_seed

SHARES = {Split.TRAIN: 8, Split.VALIDATION: 1, Split.TEST: 1}
"""The parts of a source that all three splits name; two of them share in the same proportion."""


def sources_by_split(data: str | Mapping[str, str], environment: str) -> dict[Split, str]:
    """``data`` as a source for each split; one name stands for all three.

    Raises:
        ValueError: for a key that is no split, or what is not the name of a source.
    """
    if isinstance(data, str):
        return dict.fromkeys(Split, data)
    if not isinstance(data, Mapping) or not all(isinstance(source, str) for source in data.values()):
        raise ValueError(
            f"{environment}: data: name a file or a folder, or one for each of train, validation and test, not "
            f"{cut(repr(data), 100)}"
        )
    unknown = sorted(map(str, set(data) - {split.value for split in Split}))
    if unknown:
        raise ValueError(f"{environment}: data: {unknown[0]!r} is no split; there are train, validation and test")
    return {split: data[split.value] for split in Split if split.value in data}


def split_of(task_id: str, environment: str, among: Sequence[Split]) -> Split:
    """The one of ``among`` (the splits that share a source) that a task of it belongs to."""
    draw = derive_seed("split", environment, task_id) % sum(SHARES[split] for split in among)
    for split in among:
        draw -= SHARES[split]
        if draw < 0:
            return split
    raise AssertionError("the shares add up")


def existing(source: str, environment: str, remedy: str) -> Path:
    """The file or folder that a source names.

    Raises:
        ValueError: if it is not there; says how to get it.
    """
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:  # too long a name
        raise ValueError(f"{environment}: data: {cut(source)}: {error.strerror}; {remedy}") from None
    if not exists:
        raise ValueError(f"{environment}: data: there is no {source}; {remedy}")
    return path
