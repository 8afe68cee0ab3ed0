"""``retro list``: the kinds of every extension point."""

from __future__ import annotations

from collections.abc import Iterator

from retro.config.points import POINTS, Kind


def list_kinds() -> None:
    """Print each extension point with its kinds, and what these still need."""
    for name, point in POINTS.items():
        print(f"{name}: {point.summary}")
        for kind, built_in in point.kinds.items():
            print(f"  {kind}: {built_in.summary}")
            for need in needs(built_in):
                print(f"      {need}")
    print("your own kind: module:Class, with options (docs/extending.md)")


def needs(kind: Kind) -> Iterator[str]:
    """The installations and downloads without which the kind cannot be used."""
    if kind.missing:
        yield f"not installed ({', '.join(kind.missing)}): pip install 'retro[{kind.extra}]'"
    if kind.data:
        yield f"data: {kind.data}"
