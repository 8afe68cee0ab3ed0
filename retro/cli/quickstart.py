"""``retro quickstart``: the whole pipeline on the embedded default, from a clone or from the wheel alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import retro
from retro.config import RunConfig, load_config


def quickstart_files() -> tuple[Path, Path]:
    """The quickstart's config, and the folder with its two models.

    A wheel has them inside the package; in a clone they are where they are maintained.
    """
    package = Path(retro.__file__).parent
    if (package / "quickstart").is_dir():
        return package / "quickstart" / "quickstart.yaml", package / "quickstart"
    clone = package.parent
    return clone / "configs" / "quickstart.yaml", clone / "data" / "quickstart"


def quickstart_config(overrides: Sequence[str]) -> RunConfig:
    """The quickstart's config with the models' own places, so that it runs in any folder.

    Args:
        overrides: ``key.sub=value``, as for ``retro run``; they may name other models.
    """
    config, models = quickstart_files()
    places = {"actor.model": models / "actor", "model.base": models / "retrospective"}
    # a path may hold what YAML would read as something else
    return load_config(
        config, [*(f"{key}={json.dumps(str(place), ensure_ascii=False)}" for key, place in places.items()), *overrides]
    )
