"""Which tasks of a file, a folder or a published split belong to which of our splits.

An environment's ``data`` names a source for each split. Splits that name the same source share it: the hash of a task's
id decides its split, which therefore never changes, whatever else the source holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from retro.reading import cut
from retro.types import Split, derive_seed

SHARES = {Split.TRAIN: 8, Split.VALIDATION: 1, Split.TEST: 1}
"""How three splits share one source; two splits share it in the same proportion."""


def sources_by_split(data: str | Mapping[str, str], environment: str) -> dict[Split, str]:
    """The source of each split; one name is the source of all three.

    Raises:
        ValueError: for a key that is not a split, or a source that is not a name.
    """
    if isinstance(data, str):
        return dict.fromkeys(Split, data)
    if not isinstance(data, Mapping) or not data or not all(isinstance(source, str) for source in data.values()):
        raise ValueError(
            f"{environment}: data: name a file or a folder, or one for each of train, validation and test, not "
            f"{cut(repr(data), 100)}"
        )
    unknown = sorted(map(str, set(data) - {split.value for split in Split}))
    if unknown:
        raise ValueError(f"{environment}: data: {unknown[0]!r} is not a split; there are train, validation and test")
    return {split: data[split.value] for split in Split if split.value in data}


def split_of(task_id: str, environment: str, among: Sequence[Split]) -> Split:
    """The split of a task, one of those that share its source (``among``)."""
    draw = derive_seed("split", environment, task_id) % sum(SHARES[split] for split in among)
    for split in among:
        draw -= SHARES[split]
        if draw < 0:
            return split
    raise AssertionError("the shares add up")


def existing(source: str, environment: str, remedy: str) -> Path:
    """The file or folder that a source names.

    Raises:
        ValueError: if it does not exist; says how to get it.
    """
    path = Path(source)
    try:
        exists = path.exists()
    except OSError as error:  # the name is too long
        raise ValueError(f"{environment}: data: {cut(source)}: {error.strerror}; {remedy}") from None
    if not exists:
        raise ValueError(f"{environment}: data: there is no {source}; {remedy}")
    return path
