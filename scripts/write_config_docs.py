"""Write docs/configuration.md from the config's models; with --check, fail where the page is not what they say."""

from __future__ import annotations

import ast
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from retro.config import KindSection, PolicySection, RewardTermSection, RunConfig, Speed
from retro.config.kinds import section_class
from retro.config.points import POINTS

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

<!-- Written by scripts/write_config_docs.py from the config's sections: change those, then run `make docs`. -->

A config is one YAML file with a section for each part of a run; what it leaves out has the default below. An unknown or
mistyped key is refused, with the nearest right one. On the command line `key.sub=value` replaces a value, written as
YAML: `ppo.steps=50`, `evaluate.arms=[reflexion, sft]`, `buffer.url=null`.

`retro run CONFIG --dry-run` prints the whole resolved config, the stages that would run and why, and estimates of
memory and episodes. Each run writes its resolved config to `config.yaml` in the run folder; that file runs as it is.

A section with a `kind` is read as that kind's: it has the keys that every kind has, and those of its own; a key of
another kind is refused. A kind of your own is `kind: package.module:Class` with `options: {…}`, which the class's
`Options` validates.

Keys marked ⏱ change how fast or at what cost a result is reached, never the result: a finished stage stays up to date
when they change.
"""


def main() -> None:
    page = "\n".join([INTRODUCTION, *_sections(RunConfig, "", "Run")])
    if "--check" in sys.argv[1:]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
            sys.exit(f"{PAGE.name} is not what the config says; run: make docs")
        return
    PAGE.write_text(page, encoding="utf-8")


def _sections(model: type[BaseModel], prefix: str, title: str, level: int = 2) -> Iterator[str]:
    docs = _attribute_docs(model)
    nested: list[tuple[str, type[BaseModel]]] = []
    rows = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if _is_section(annotation):
            nested.append((name, annotation))
        else:
            rows.append(_row(f"{prefix}{name}", field, docs.get(name, "")))
            nested += [(f"{name}[]", section) for section in _listed(annotation)]
    yield f"{'#' * level} {title}\n"
    own = vars(model).get("__doc__")
    if own:
        yield f"{' '.join(inspect.cleandoc(own).split())}\n"
    if rows:
        yield from ("| key | type | default | meaning |", "|---|---|---|---|", *rows, "")
    for name, section in nested:
        yield from _sections(section, f"{prefix}{name}.", f"{prefix}{name}")
        if issubclass(section, KindSection):
            yield from _kinds(section, f"{prefix}{name}")
            if section is PolicySection:
                yield from _sections(RewardTermSection, "ppo.reward[].", "A term of ppo.reward")
                yield from _kinds(RewardTermSection, "ppo.reward[]")


def _kinds(base: type[KindSection], name: str) -> Iterator[str]:
    """Each built-in kind of a section: the keys that only it reads."""
    for kind, built in POINTS[base.point].kinds.items():
        options = section_class(base, kind)
        docs = _attribute_docs(options)
        yield f"### {name}: `{base.discriminator}: {kind}`\n"
        yield f"{built.summary[0].upper()}{built.summary[1:]}.\n"
        own = {key: field for key, field in options.model_fields.items() if key not in base.model_fields}
        nested = {key: field.annotation for key, field in own.items() if _is_section(field.annotation)}
        rows = [_row(f"{name}.{key}", own[key], docs.get(key, "")) for key in own if key not in nested]
        if rows:
            yield from ("| key | type | default | meaning |", "|---|---|---|---|", *rows, "")
        for key, section in nested.items():
            mark = " ⏱" if Speed in own[key].metadata else ""
            yield from _sections(section, f"{name}.{key}.", f"{name}.{key}{mark}", level=4)


def _row(key: str, field: FieldInfo, meaning: str) -> str:
    mark = " ⏱" if Speed in field.metadata else ""
    return f"| `{key}`{mark} | {_type(field)} | {_default(field)} | {meaning} |"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _listed(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a list may hold."""
    for argument in get_args(annotation):
        yield from [argument] if _is_section(argument) else _listed(argument)


def _attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The string under each field, by name, the base classes' first."""
    found: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not issubclass(parent, BaseModel) or not parent.__module__.startswith("retro."):
            continue
        (definition,) = ast.parse(dedent(inspect.getsource(parent))).body
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
    if origin is tuple:
        return f"a term or a list of terms of kind {' or '.join(f'`{kind}`' for kind in POINTS['reward'].kinds)}"
    if origin is list:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_name(arguments[0])} to {_name(arguments[1])}"
    return _name(arguments[0])  # Annotated


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        return " ".join(f"`{term.kind}`" for term in value)
    if value is None:
        return "`null`"
    return f"`{str(value).lower() if isinstance(value, bool) else str(value).replace(chr(39), '')}`"


if __name__ == "__main__":
    main()
