"""Write the lists of docs/bases.md from what the tests know; with --check, fail where the page says something else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill

from retro.models.bases import SAMPLING, TRAINING
from tests.architectures import NAMES, REFUSED, TARGETS

PAGE = Path(__file__).parents[1] / "docs" / "bases.md"
BEGIN, END = "<!-- lists: written by `make docs` -->", "<!-- end of the lists -->"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    written = f"{before}{BEGIN}\n\n{lists()}\n{END}{rest.partition(END)[2]}"
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(written, encoding="utf-8")
    elif page != written:
        sys.exit(f"{PAGE.name} is not what the tests say; run: make docs")


def lists() -> str:
    """The architectures by path, as Markdown."""
    exact = [name for name in sorted(NAMES) if name not in REFUSED]
    plain = [name for name in exact if name not in TRAINING]
    parts = [
        f"**Shared in training and in sampling** ({len(SAMPLING)}):",
        _names(SAMPLING),
        f"**Shared in training; sampling computes each answer by itself** ({len(TRAINING - SAMPLING)}):",
        _names(TRAINING - SAMPLING),
        f"**Each response by itself in both** ({len(plain)}):",
        _names(plain),
        "**Exact with adapters on some layers only**: with `all-linear` these are refused. The tests use:",
        "| architecture | `model.lora.target_modules` |\n|---|---|\n"
        + "\n".join(f"| `{name}` | `[{', '.join(targets)}]` |" for name, targets in sorted(TARGETS.items())),
        "**Refused**, whatever the adapters are:",
        "| architecture | because |\n|---|---|\n"
        + "\n".join(
            f"| `{name}` | {words.replace(chr(92) + 'd+', 'so many')} |" for name, words in sorted(REFUSED.items())
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _names(names: Iterable[str]) -> str:
    return fill(", ".join(f"`{name}`" for name in sorted(names)), 120, break_on_hyphens=False)


if __name__ == "__main__":
    main()
