"""Writes a run's files atomically, computes digests, and records the versions of the code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from retro.config import ActorSection, MemorySection

PACKAGES = ("retro", "torch", "transformers", "peft", "trl", "accelerate")
LARGE_FILE_BYTES = 256 * 2**20
SAMPLE_BYTES = 2**20


def digest_path(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents.

    For a file above 256 MiB, it covers the size and one MiB each from its start, middle and end.

    Raises:
        FileNotFoundError: if there is nothing at ``path``.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            if file.stat().st_size > LARGE_FILE_BYTES:
                for offset in (0, file.stat().st_size // 2, file.stat().st_size - SAMPLE_BYTES):
                    content.seek(offset)
                    digest.update(content.read(SAMPLE_BYTES))
            else:
                while chunk := content.read(SAMPLE_BYTES):
                    digest.update(chunk)
    return digest.hexdigest()


def digest_model(name: str, revision: str | None = None) -> str:
    """Identifies a base model as a stage's input: by a folder's contents, or by hub name and revision."""
    return digest_path(Path(name)) if Path(name).exists() else f"{name}@{revision or 'main'}"


def digest_parts(section: ActorSection | MemorySection) -> dict[str, str]:
    """Identifies the folders that an actor uses besides its model, or a memory besides its bank, by their contents."""
    own = getattr(getattr(section, "options", None), "parts", {})  # of somebody's own kind
    return {role: digest_model(name) for role, name in {**section.parts, **own}.items()}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that a reader always finds the old file or the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def git_revision() -> str | None:
    """The commit of this package's working tree, with ``+`` if it has changes; None outside of git."""
    try:
        head = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or no commit: a wheel's user has none
        return None
    return head + ("+" if changes else "")


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def finite(value: Any) -> Any:
    """``value`` with None for each NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
