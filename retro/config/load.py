"""Reads a config from YAML and dotted overrides, and explains what is wrong with it."""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from retro.config.base import ConfigError
from retro.config.kinds import is_kind_section, section_class
from retro.config.migration import migrated
from retro.config.points import POINTS
from retro.config.run import RunConfig
from retro.database_url import has_password, without_password
from retro.reading import UnreadableError, cut, parse_yaml, read_yaml

logger = logging.getLogger(__name__)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config, apply ``key.sub=value`` overrides (values are YAML), validate.

    Raises:
        ConfigError: naming the file, the key, the problem and the nearest valid key.
    """
    tree = read_tree(Path(path))
    given = copy.deepcopy(tree)
    for override in overrides:
        _apply(tree, override)
    _drop_what_other_kinds_read(tree, given, overrides)
    try:
        return parse_config(tree, str(path))
    except ConfigError as error:
        changes = migrated(given)[1]
        if changes and all(change.sure for change in changes):
            raise ConfigError(
                f"config {path}: an earlier release wrote it; rewrite it with: retro migrate {path}"
            ) from None
        hint = f"\n  if an earlier release wrote it: retro migrate {path}" if changes else ""
        raise ConfigError(f"{error}{hint}") from None


def read_tree(path: Path) -> dict[str, Any]:
    """The sections of a YAML config as plain values.

    Raises:
        ConfigError: if it cannot be read, or is not a mapping.
    """
    if not path.exists():
        raise ConfigError(f"config {path}: no such file")
    try:
        tree = read_yaml(path) or {}
    except UnreadableError as error:
        raise ConfigError(f"config {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: the top level must be a mapping of sections, not {type(tree).__name__}")
    return tree


def parse_config(tree: dict[str, Any], origin: str) -> RunConfig:
    """Validate a tree of plain values, which errors call ``origin``."""
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"config {origin}:\n" + "\n".join(_explain(error, tree))) from None
    _refuse_passwords(config)
    return config


def _refuse_passwords(config: RunConfig) -> None:
    """Refuse passwords before the config is written to the run folder, the trackers and the terminal."""
    buffer, in_key = config.buffer.url or "", "set the environment variable OPENAI_API_KEY"
    curator = getattr(getattr(config.memory, "options", config.memory), "curator", None)
    servers = {"actor": config.actor, "memory.curator": curator, "model.generator": config.model.generator}
    urls = {f"{name}.base_url": getattr(section, "base_url", None) or "" for name, section in servers.items()}
    for key, url, refused, remedy in (
        *((key, url, "//" in url.rpartition("@")[0], in_key) for key, url in urls.items()),
        ("buffer.url", buffer, has_password(buffer), "give it to PostgreSQL in PGPASSWORD or ~/.pgpass"),
    ):
        if refused:
            raise ConfigError(
                f"{key} {without_password(url)!r}: a password in a URL would be written to config.yaml and logs: take "
                f"it out, and {remedy}"
            )


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write it as key.sub=value, for example ppo.steps=50")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        tree[leaf] = parse_yaml(text)
    except UnreadableError as error:
        raise ConfigError(f"override {cut(override)!r}: the value is {error}") from None


def _drop_what_other_kinds_read(tree: dict[str, Any], given: dict[str, Any], overrides: Sequence[str]) -> None:
    """If an override chooses another kind than the file, leave out the keys that only the file's kind reads.

    So ``actor.kind=local`` is enough to run a config that was written for an ``openai`` actor.
    """
    named = {override.partition("=")[0].strip() for override in overrides}
    for name, field in RunConfig.model_fields.items():
        base, old, new = field.annotation, given.get(name), tree.get(name)
        if not (is_kind_section(base) and isinstance(old, Mapping) and isinstance(new, dict)):
            continue
        before, after = (value.get(base.discriminator, base.default_kind()) for value in (old, new))
        if before == after or f"{name}.{base.discriminator}" not in named:
            continue
        read = section_class(base, after).model_fields
        for key in [key for key in section_class(base, before).model_fields if key in new and key not in read]:
            if f"{name}.{key}" not in named:
                logger.info("%s.%s=%s does not read %s.%s", name, base.discriminator, after, name, key)
                del new[key]


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        *location, last = problem["loc"] or ("config",)
        key = ".".join(map(str, [*location, last]))
        message = problem["msg"].removeprefix("Value error, ")
        whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # the check of a section
        if problem["type"] == "extra_forbidden":
            yield f"  {key}: unknown key; {_hint(str(last), *_section_at(location, tree))}"
        elif whole or problem["type"] == "kind":
            yield f"  {key}: {message}"
        else:
            yield f"  {key}: {message} (got {cut(repr(problem['input']))})"


def _hint(key: str, section: type[BaseModel] | None, kind: str) -> str:
    """What to write instead of an unknown key of a section, whose kind is ``kind``."""
    known = [] if section is None else list(section.model_fields)
    if kind and is_kind_section(section):
        kinds = POINTS[section.point].kinds
        readers = [name for name in sorted(kinds) if key in section_class(section, name).model_fields]
        if readers:
            return f"{' and '.join(readers)} {'read' if readers[1:] else 'reads'} it, and this is {kind}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known {f'to {kind}' if kind else 'here'}: {', '.join(known)}"


def _section_at(location: Sequence[str | int], tree: Any) -> tuple[type[BaseModel] | None, str]:
    """The section at ``location`` in a tree of plain values, and its kind if it has one."""
    section: type[BaseModel] | None = RunConfig
    kind = ""
    for part in location:
        if isinstance(part, str):
            section = next(_sections_in(section.model_fields[part].annotation), None) if section else None
            kind = ""
        tree = tree[part] if isinstance(part, str) or isinstance(tree, list) else tree  # a term may stand for a list
        if is_kind_section(section) and isinstance(tree, Mapping):
            kind = tree.get(section.discriminator, section.default_kind())
            section = section_class(section, kind)
    return section, kind


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
