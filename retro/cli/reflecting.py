"""``retro reflect``: a trajectory in, the Best-of-N reflection out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.cli.logs import quieten
from retro.config import ConfigError
from retro.layout import RunFolder
from retro.reading import DATA_BYTES, parse_json
from retro.types import to_json


@dataclass(frozen=True, slots=True)
class ReflectOptions:
    """What was asked on the command line."""

    adapter: str
    trajectory: Path | None
    n: int
    seed: int
    base: str | None
    prompts: str | None
    as_json: bool
    server: str | None = None
    server_model: str | None = None
    scores: bool = True
    trust_remote_code: bool = False


def reflect_on(options: ReflectOptions) -> None:
    """Print the reflection's text, or with ``as_json`` everything that is known of it."""
    trajectory = _read(options.trajectory)
    quieten()

    from retro.agent.model import RetrospectiveModel

    model = RetrospectiveModel.load(
        _export(options.adapter),
        base=options.base,
        prompts=options.prompts,
        server=options.server,
        server_model=options.server_model,
        scores=options.scores,
        trust_remote_code=options.trust_remote_code,
    )
    reflected = model.reflect(trajectory, n=options.n, seed=options.seed)
    print(json.dumps(to_json(reflected), ensure_ascii=False, indent=1) if options.as_json else reflected.text)


def _export(path: str) -> Path:
    """A run folder means its export."""
    inside = RunFolder(Path(path)).export
    return inside if inside.is_dir() else Path(path)


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
