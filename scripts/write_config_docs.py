"""Write docs/configuration.md from the config's models; with --check, fail where the page is not what they say."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from retro import config
from retro.config import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

<!-- Written by scripts/write_config_docs.py from retro/config.py: change that, then run `make docs`. -->

A config is one YAML file with a section for each part of a run; what it leaves out has the default below. An unknown or
mistyped key is refused, with the nearest right one. On the command line `key.sub=value` replaces a value, written as
YAML: `ppo.steps=50`, `evaluate.arms=[reflexion, sft]`, `buffer.url=null`.

`retro run CONFIG --dry-run` prints the whole resolved config, the stages that would run and why, and estimates of
memory and episodes. Each run writes its resolved config to `config.yaml` in the run folder; that file runs as it is.
"""


def main() -> None:
    page = "\n".join([INTRODUCTION, *_sections(RunConfig, "", "Run")])
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            sys.exit(f"{PAGE.name} is not what retro/config.py says; run: make docs")
        return
    PAGE.write_text(page, encoding="utf-8")


def _sections(model: type[BaseModel], prefix: str, title: str) -> Iterator[str]:
    docs = _attribute_docs(model)
    nested: list[tuple[str, type[BaseModel]]] = []
    rows = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            nested.append((name, annotation))
        else:
            rows.append(f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {docs.get(name, '')} |")
    yield f"## {title}\n"
    own = vars(model).get("__doc__")
    if own:
        yield f"{' '.join(inspect.cleandoc(own).split())}\n"
    if rows:
        yield from ("| key | type | default | meaning |", "|---|---|---|---|", *rows, "")
    for name, section in nested:
        yield from _sections(section, f"{prefix}{name}.", f"{prefix}{name}")


def _attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field, by name, the base classes' first."""
    found: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not issubclass(parent, BaseModel) or parent.__module__ != config.__name__:
            continue
        (definition,) = ast.parse(inspect.getsource(parent)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, after in zip(definition.body, definition.body[1:], strict=False):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(inspect.cleandoc(text).split()).replace("|", "\\|").replace("``", "`")
    return found


def _type(field: FieldInfo) -> str:
    bounds = [_bound(item) for item in field.metadata]
    return ", ".join(filter(None, [_name(field.annotation), *bounds]))


def _bound(constraint: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(f"{signs[key]} {getattr(constraint, key)}" for key in signs if hasattr(constraint, key))


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "anything"
    if origin in (types.UnionType, None) or str(origin) == "typing.Union":
        return " or ".join(map(_name, arguments)) if arguments else annotation.__name__
    if str(origin) == "typing.Literal":
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_name(arguments[0])} to {_name(arguments[1])}"
    return _name(arguments[0])  # Annotated


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "`null`"
    return f"`{str(value).lower() if isinstance(value, bool) else str(value).replace(chr(39), '')}`"


if __name__ == "__main__":
    main()
