"""Checks that an export's files are those that were exported, and that they lie in its folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from retro.agent.records import EXPORT, PROMPTS, ExportError, FileRecord

logger = logging.getLogger(__name__)


def file_records(export: Path, parts: Sequence[str]) -> dict[str, FileRecord]:
    """The size and the digest of each file in the folders ``parts`` of an export, by its path in the export."""
    return {
        file.relative_to(export).as_posix(): FileRecord(bytes=file.stat().st_size, sha256=_sha256(file))
        for part in parts
        for file in _files(export / part)
    }


def check_files(export: Path, expected: Mapping[str, FileRecord] | None, parts: Sequence[str]) -> None:
    """Compare the files in the folders ``parts`` with their sizes and digests in ``retro.json``.

    This finds damage, but no attack: whoever changes a file can change its digest, too.

    Raises:
        ExportError: naming the file that differs, is missing, was added, or is a link that leads out of the export.
    """
    found = {file.relative_to(export).as_posix(): file for part in parts for file in _files(export / part)}
    for name, file in found.items():
        if not _lies_in(export, file):
            raise ExportError(f"{export / name}: a link out of the export: put the file itself there")
    if expected is None:
        logger.warning("%s has no digests: damage to its files goes unnoticed; export the run again", export / EXPORT)
        return
    for name in sorted({name for name in expected if name.split("/")[0] in parts} | found.keys()):
        remedy = "export the run again" + (" or give prompts (--prompts)" if name.startswith(f"{PROMPTS}/") else "")
        if name not in found:
            raise ExportError(f"{export / name}: missing, though {EXPORT} lists it; {remedy}")
        if name not in expected:
            raise ExportError(f"{export / name}: not among the files that {EXPORT} lists; remove it, or {remedy}")
        same_size = found[name].stat().st_size == expected[name].bytes  # first: it bounds what is read
        if not same_size or _sha256(found[name]) != expected[name].sha256:
            raise ExportError(f"{export / name}: not what was exported: it is damaged or was edited; {remedy}")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if not path.is_dir() and not path.name.startswith("."))


def _lies_in(export: Path, file: Path) -> bool:
    """Whether a file lies in the export, or is a link to the blobs of Hugging Face's cache, where the export lies."""
    try:
        root, target = export.resolve(), file.resolve()
    except (OSError, RuntimeError):  # a link to itself
        return False
    caches = [folder.parent / "blobs" for folder in root.parents if folder.name == "snapshots"]
    return any(target.is_relative_to(folder) for folder in (root, *caches)) and target.is_file()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
