"""Packages that only a part of ``retro`` needs, and the extras that install them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from retro.config.base import ConfigError


def missing(packages: Sequence[str]) -> list[str]:
    """Those import names of which no package is installed. Nothing is imported."""
    return [package for package in packages if importlib.util.find_spec(package) is None]


def require(what: str, extra: str | None, packages: Sequence[str]) -> None:
    """Refuse to go on without the packages of an extra.

    Raises:
        ConfigError: naming ``what`` needs them, the missing ones, and the command that installs them.
    """
    if absent := missing(packages):
        raise ConfigError(f"{what} needs {', '.join(absent)}: pip install 'retro[{extra}]'")
