"""A stage's view of the config: it has the keys that the stage declared, and raises an error for any other.

Keys are dotted: ``model`` names a whole section, ``model.base`` one key of it. Keys that are marked
:class:`~retro.config.Speed` may always be read; they decide a result only if they are declared by their own name.
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
    """A stage read a key that it did not declare, so its manifest would not record what decided the result."""


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
    """Whether it changes speed or cost only."""


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
    """The leaves that ``keys`` declare. Raises ValueError for a key that the config does not have."""
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

    A section whose keys may all be read is handed out as it is. Any other raises :class:`UndeclaredKeyError` when a
    further key is read, dumped or replaced.
    """
    allowed = {leaf.key for leaf in declared(config, keys)} | {leaf.key for leaf in leaves(config) if leaf.speed}
    return cast(RunConfig, _restricted(config, stage, allowed, ""))


class ConfigView(Section):
    """Mixed into a section's class; an instance lacks the keys that its stage did not declare."""

    _stage: str = PrivateAttr()
    _prefix: str = PrivateAttr()

    def __getattr__(self, name: str) -> Any:  # called only for what the instance does not have
        if name in type(self).model_fields:
            raise UndeclaredKeyError(f"stage {self._stage} read {self._prefix}{name} without declaring it")
        return super().__getattr__(name)  # type: ignore[misc]

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """Dump keys that may be read. ``include`` and ``exclude`` may be sets of keys of this section."""
        self._require(options.get("include"), options.get("exclude"))
        return super().model_dump(**options)

    def model_dump_json(self, **options: Any) -> str:
        self._require(options.get("include"), options.get("exclude"))
        return super().model_dump_json(**options)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Replace values of keys that may be read."""
        for name in update or ():
            getattr(self, name)
        return super().model_copy(update=update, deep=deep)

    def __reduce__(self) -> tuple[Any, ...]:
        return _view, (type(self).__bases__[1], dict(self.__dict__), self._stage, self._prefix)

    def _require(self, include: Any = None, exclude: Any = None) -> None:
        """Read every key that a dump writes, also those of the sections in this one, as a whole."""
        for name in type(self).model_fields:
            left_out = isinstance(exclude, set) and name in exclude
            if not left_out and (include is None or name in include):
                value = getattr(self, name)
                if isinstance(value, ConfigView):
                    value._require()


def _plain(value: Any) -> Any:
    """``value`` as plain JSON; sections in a list without their keys of speed."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return deciding(value) if isinstance(value, Section) else to_jsonable_python(value)


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
    view = _view_class(cls).model_construct(**values)
    for name in type(view).model_fields.keys() - values.keys():
        view.__dict__.pop(name, None)  # the default of a key that may not be read
    view._stage, view._prefix = stage, prefix
    return view


@cache
def _view_class(cls: type[Section]) -> type[ConfigView]:
    return type(cls.__name__, (ConfigView, cls), {"__module__": cls.__module__})
