"""What a stage may read of the config: a view that has the declared keys alone, and says so loudly of every other.

A key is dotted: ``model`` names a section with all that is in it, ``model.base`` one key of it. Keys that are marked
:data:`~retro.config.Speed` need no declaration, and count among what decides only where they are named themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, cast

from pydantic import PrivateAttr
from pydantic_core import to_jsonable_python

from retro.config.base import Section, Speed, deciding
from retro.config.run import RunConfig


class UndeclaredKeyError(RuntimeError):
    """A stage read a key of the config that it did not declare: what it made would not say what made it."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One key of a config that is not a section."""

    key: str
    """Dotted."""
    value: Any
    """As plain JSON."""
    default: Any
    """As plain JSON; None where the key has no default."""
    speed: bool
    """Changes speed or cost only."""


def leaves(section: Section, prefix: str = "", speed: bool = False) -> Iterator[Leaf]:
    """All keys of a section, those of the sections in it included."""
    for name, field in type(section).model_fields.items():
        value, marked = getattr(section, name), speed or Speed in field.metadata
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.", marked)
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            yield Leaf(f"{prefix}{name}", _plain(value), _plain(default), marked)


def declared(config: RunConfig, keys: Collection[str]) -> list[Leaf]:
    """The leaves that ``keys`` declare.

    Raises:
        ValueError: for a key that the config does not have.
    """
    everything = list(leaves(config))
    for key in keys:
        if not any(covers(key, leaf.key) for leaf in everything):
            raise ValueError(f"the config has no key {key}")
    return [
        leaf
        for leaf in everything
        if any(key == leaf.key or (covers(key, leaf.key) and not leaf.speed) for key in keys)
    ]


def covers(key: str, leaf: str) -> bool:
    """Whether ``leaf`` is ``key`` or lies in it."""
    return leaf == key or leaf.startswith(f"{key}.")


def view_of(config: RunConfig, stage: str, keys: Collection[str]) -> RunConfig:
    """``config`` with the keys that ``stage`` declared, and those marked ``Speed``.

    A section of which all keys may be read is handed out as it is. Of any other, reading, dumping or copying works
    with the keys that may be read, and raises :class:`UndeclaredKeyError` with the others.
    """
    allowed = {leaf.key for leaf in declared(config, keys)} | {leaf.key for leaf in leaves(config) if leaf.speed}
    return cast(RunConfig, _restricted(config, stage, allowed, ""))


class ConfigView(Section):
    """Mixed into a section's class: an instance that lacks the keys which its stage did not declare."""

    _stage: str = PrivateAttr()
    _prefix: str = PrivateAttr()

    def __getattr__(self, name: str) -> Any:  # called only for what the instance does not have
        if name in type(self).model_fields:
            raise UndeclaredKeyError(f"stage {self._stage} read {self._prefix}{name} without declaring it")
        return super().__getattr__(name)  # type: ignore[misc]

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The keys that may be read, if ``include`` and ``exclude`` ask for no other."""
        self._refuse_undeclared(options.get("include"), options.get("exclude"))
        return super().model_dump(**options)

    def model_dump_json(self, **options: Any) -> str:
        """As :meth:`model_dump`."""
        self._refuse_undeclared(options.get("include"), options.get("exclude"))
        return super().model_dump_json(**options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A view with other values of keys that may be read."""
        for name in update or ():
            getattr(self, name)
        return super().model_copy(update=update, deep=deep)

    def __reduce__(self) -> tuple[Any, ...]:
        return _view, (type(self).__bases__[1], dict(self.__dict__), self._stage, self._prefix)

    def _refuse_undeclared(self, include: Any, exclude: Any) -> None:
        """Read every key that a dump asks for, also those of the sections in this one."""
        for name in type(self).model_fields:
            within, without = _inside(include, name), _inside(exclude, name)
            if without is True or (include is not None and within is False):
                continue
            value = getattr(self, name)
            if isinstance(value, ConfigView):
                value._refuse_undeclared(
                    *(part if isinstance(part, (set, dict)) else None for part in (within, without))
                )


def _plain(value: Any) -> Any:
    """As plain JSON; of sections in a list what decides."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return deciding(value) if isinstance(value, Section) else to_jsonable_python(value)


def _inside(chosen: Any, name: str) -> Any:
    """What pydantic's ``include`` or ``exclude`` says of a key: True (all of it), False (none), or its own keys."""
    if isinstance(chosen, dict):
        return chosen.get(name, False)
    return chosen is not None and name in chosen


def _restricted(section: Section, stage: str, allowed: set[str], prefix: str) -> Section:
    if all(leaf.key in allowed for leaf in leaves(section, prefix)):
        return section
    values: dict[str, Any] = {}
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(value, Section):
            values[name] = _restricted(value, stage, allowed, f"{key}.")
        elif key in allowed:
            values[name] = value
    return _view(type(section), values, stage, prefix)


def _view(cls: type[Section], values: dict[str, Any], stage: str, prefix: str) -> Section:
    view_class = _view_class(cls)
    view = view_class.__new__(view_class)  # not validated: the values have been, and some are missing on purpose
    for slot, content in (
        ("__dict__", values),
        ("__pydantic_fields_set__", set(values)),
        ("__pydantic_extra__", None),
        ("__pydantic_private__", {"_stage": stage, "_prefix": prefix}),
    ):
        object.__setattr__(view, slot, content)
    return view


@cache
def _view_class(cls: type[Section]) -> type[Section]:
    return type(cls.__name__, (ConfigView, cls), {"__module__": cls.__module__})
