"""The lower bounds of pyproject.toml and the pins of constraints-lowest.txt are the same versions."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


TRAIN = {"bm25s", "datasets", "matplotlib", "pyarrow", "sklearn", "Stemmer", "trl"}
"""What an agent with an export does not need, so that ``pip install retro`` leaves it out."""


def test_what_the_runtime_does_without_is_imported_where_it_is_used() -> None:
    """Of these files, the runtime imports none."""
    at_the_top = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "retro").rglob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        if name.partition(".")[0] in TRAIN
    }
    assert at_the_top == {"retro/buffer/reflexion_logs.py", "retro/evaluation/figures.py"}


def direct_requirements() -> list[Requirement]:
    """What the package and its extras ask for, without the extras of retro itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(text) for texts in lists for text in texts]
    return [requirement for requirement in requirements if requirement.name != "retro"]


def single_versions(requirements: list[Requirement], operator: str) -> dict[str, Version]:
    """The version of each name; every specifier is one ``operator`` and one version."""
    versions: dict[str, Version] = {}
    for requirement in requirements:
        (specifier,) = requirement.specifier
        assert specifier.operator == operator, f"{requirement}: not of the form {operator}VERSION"
        name, version = canonicalize_name(requirement.name), Version(specifier.version)
        assert versions.setdefault(name, version) == version, f"{name} has two versions"
    return versions


def test_the_lower_bounds_are_the_versions_that_test_lowest_installs() -> None:
    asked = direct_requirements()
    bounded = [requirement for requirement in asked if requirement.specifier]
    bounds = single_versions(bounded, ">=")
    unbounded = {canonicalize_name(requirement.name) for requirement in asked} - set(bounds)
    assert not unbounded, f"pyproject.toml gives no lower bound for {unbounded}"

    text = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    pins = single_versions([Requirement(line) for line in lines if line], "==")
    assert pins == bounds
