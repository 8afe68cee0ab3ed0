"""Who may import whom: the rows of the design, read from the source."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "retro"
ROWS = [
    {"reading", "layout", "ties"},
    {"database_url", "lease"},
    {"ratings"},
    {"types"},
    {"config"},
    {"artifacts"},
    {"wire"},
    {"envs", "memory", "prompts", "models", "rl", "buffer"},
    {"retrospective", "actors"},
    {"rollout"},
    {"agent"},
    {"stage"},
    {"training", "evaluation", "serving"},
    {"cli"},
]
ROW_OF = {name: place for place, row in enumerate(ROWS) for name in row}


def part_of(module: str) -> str | None:
    """``retro.models.text`` → ``models``; None for what is not ours."""
    names = module.split(".")
    return names[1] if names[0] == "retro" and len(names) > 1 else None


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "retro" else [f"retro.{alias.name}" for alias in node.names]
            found.update(names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {part for part in map(part_of, found) if part in ROW_OF}


def test_a_module_imports_rows_above_its_own_only() -> None:
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":  # the lazy public names
            continue
        for other in imports(file):
            if other != own and ROW_OF[other] >= ROW_OF[own]:
                wrong.append(f"{file.relative_to(PACKAGE)} imports {other}")
    assert not wrong, wrong


def imported_files(file: Path) -> set[Path]:
    """The files of ours that ``file`` imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    paths = [PACKAGE.parent.joinpath(*name.split(".")) for name in found if name.split(".")[0] == "retro"]
    modules = {path.with_suffix(".py") for path in paths} | {path / "__init__.py" for path in paths}
    return {module for module in modules if module.is_file()} - {file}


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {file: imported_files(file) for file in sorted(PACKAGE.rglob("*.py"))}
    TopologicalSorter(graph).prepare()  # its error names the circle


def test_every_part_of_the_package_has_its_row() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} == set(ROW_OF)


def test_the_words_and_the_config_load_without_torch() -> None:
    for file in [PACKAGE / "types.py", PACKAGE / "ties.py", *(PACKAGE / "config").glob("*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        roots = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        roots |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not roots & {"torch", "transformers", "peft", "trl", "accelerate"}
