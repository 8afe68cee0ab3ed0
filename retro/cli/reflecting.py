"""``retro reflect``: prints the Best-of-N reflection on a trajectory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from retro.agent.records import check_export
from retro.config import ConfigError
from retro.layout import RunFolder
from retro.reading import DATA_BYTES, parse_json
from retro.types import to_json


def reflect_on(adapter: str, trajectory: Path | None, n: int, seed: int, as_json: bool, **options: Any) -> None:
    """Print the reflection's text, or with ``as_json`` its score and all candidates, too.

    Args:
        options: Those of :meth:`retro.agent.model.RetrospectiveModel.load`.
    """
    document = _read(trajectory)

    from retro.agent.model import RetrospectiveModel

    reflected = RetrospectiveModel.load(export_folder(adapter), **options).reflect(document, n=n, seed=seed)
    print(json.dumps(to_json(reflected), ensure_ascii=False, indent=1) if as_json else reflected.text)


def export_folder(path: str) -> Path:
    """The export of a run folder, or the folder itself. Raises ExportError if it cannot be loaded."""
    inside = RunFolder(Path(path)).export
    folder = inside if inside.is_dir() else Path(path)
    check_export(folder)
    return folder


def _read(path: Path | None) -> Any:
    origin = "standard input" if path is None else str(path)
    if path is None and sys.stdin.isatty():
        raise ConfigError("standard input: give the trajectory's JSON there, or name its file with --trajectory")
    if path is None:
        content = sys.stdin.buffer.read(DATA_BYTES + 1)
    else:
        with path.open("rb") as file:  # may be a pipe: --trajectory <(…)
            content = file.read(DATA_BYTES + 1)
    if not content.strip():
        raise ConfigError(f"{origin}: empty; a trajectory is a JSON object with opening and steps (docs/agent.md)")
    return parse_json(content, origin)
