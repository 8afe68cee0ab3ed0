"""Config sections that choose the kind of an extension point, and the classes behind the kinds.

A built-in kind is one file that holds its options and its behaviour side by side::

    class LocalOptions(ActorSection):        # every key that this kind reads, documented
        kind: Literal["local"] = "local"
        ...

    class LocalActor:
        Options = LocalOptions

        @classmethod
        def from_options(cls, options: LocalOptions, **parts) -> LocalActor: ...

and one line in :data:`retro.config.points.POINTS`. Somebody else's kind is ``kind: package.module:Class`` with
``options: {...}``, which that class's own ``Options`` validates. A class is imported when a config names its kind, so
its file imports torch and other large packages inside functions only.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeGuard, TypeVar

from pydantic import SerializeAsAny, ValidationError, create_model
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from retro.config.base import ConfigError, Section
from retro.config.extras import require
from retro.config.points import POINTS


def resolve(point: str, kind: str) -> Any:
    """The class behind ``kind``, which is a built-in name or ``module:Class``.

    Raises:
        ConfigError: for an unknown name, a package that is not installed, or a class that does not belong to the point.
    """
    if builtin := POINTS[point].kinds.get(kind):
        require(f"{point} {kind!r}", builtin.extra, builtin.packages)
    return _load(point, kind)


def build(section: KindSection, **parts: Any) -> Any:
    """Make an object of the kind that ``section`` names, from its options and the ``parts`` that the point hands over.

    Raises:
        ConfigError: from :func:`resolve`, or from the class's ``from_options``.
    """
    return resolve(section.point, section.chosen).from_options(getattr(section, "options", section), **parts)


class KindSection(Section):
    """A section that chooses a variant by name. A subclass holds the keys that every kind of a point reads; the options
    of a built-in kind derive from that."""

    point: ClassVar[str]
    discriminator: ClassVar[str] = "kind"
    """The key that names the variant."""

    @classmethod
    def default_kind(cls) -> str:
        name: str = cls.model_fields[cls.discriminator].default
        return name

    @classmethod
    def of_own_kinds(cls) -> type[KindSection]:
        """The section whose keys stand beside the ``options`` of somebody's own kind."""
        return cls

    @property
    def chosen(self) -> str:
        """The name of the variant."""
        name: str = getattr(self, self.discriminator)
        return name

    def __reduce__(self) -> Any:
        # the section of somebody's own kind has a class that is made at run time; another process makes it again
        return parse_section, (_base_of(type(self)), self.model_dump(mode="json"))


S = TypeVar("S", bound=KindSection)


def is_kind_section(annotation: Any) -> TypeGuard[type[KindSection]]:
    return isinstance(annotation, type) and issubclass(annotation, KindSection)


def section_class(base: type[S], kind: str) -> type[S]:
    """The section of a kind: a built-in kind's ``Options``; for somebody's own, ``base`` with a key ``options``.

    Raises:
        ConfigError: if there is no such kind.
    """
    found = _load(base.point, kind)
    if kind in POINTS[base.point].kinds:
        options: type[S] = found.Options
        return options
    return _own_section(base.of_own_kinds(), getattr(found, "Options", Section))


def parse_section(base: type[S], value: Any) -> S:
    """Validate a section by the kind that its content names.

    Args:
        base: The point's section, such as ``ActorSection``.
        value: A mapping, the name of a kind, or a section. A bare ``base()`` stands for the defaults of its kind.

    Raises:
        ValidationError: naming the keys within the section.
    """
    if isinstance(value, base):
        if type(value) is not base:
            return value
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, str):
        value = {base.discriminator: value}
    if not isinstance(value, Mapping):
        raise PydanticCustomError("section", "must be the name of a kind, or a mapping of keys with one")
    kind = value.get(base.discriminator, base.default_kind())
    try:
        found = section_class(base, kind)
    except ConfigError as error:
        problem = PydanticCustomError("kind", "{problem}", {"problem": str(error)})
        line = InitErrorDetails(type=problem, loc=(base.discriminator,), input=kind)
        raise ValidationError.from_exception_data(base.__name__, [line]) from None
    return found.model_validate(dict(value))


class _ByKind:
    """Validates a field by the kind that its value names, and writes all that the kind reads."""

    def __get_pydantic_core_schema__(self, source: type[KindSection], handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: parse_section(source, value), serialization=core_schema.simple_ser_schema("any")
        )


OneOf = Annotated[S, _ByKind()]
"""A field that holds the section of one kind: ``actor: OneOf[ActorSection] = ActorSection()``."""


@cache
def _own_section(base: type[S], options: type[Section]) -> type[S]:
    field: Any = (SerializeAsAny[options], {})  # type: ignore[valid-type,misc]
    made: type[S] = create_model(f"Own{base.__name__}", __base__=base, __module__=base.__module__, options=field)
    return made


def _base_of(section: type[KindSection]) -> type[KindSection]:
    """The section that the point's kinds derive from."""
    return next(parent for parent in reversed(section.__mro__) if "point" in vars(parent))


def _load(point: str, kind: Any) -> Any:
    if isinstance(kind, str) and ":" in kind:
        return _of_target(point, kind)
    kinds = POINTS[point].kinds
    if not isinstance(kind, str) or kind not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{point} {kind!r} is not known; {hint}there are: {', '.join(sorted(kinds))}; name your own "
            "module:ClassName"
        )
    return _of_target(point, kinds[kind].target)


def find_named(target: str) -> Any:
    """What ``module:name`` names, in the working folder too; None if the module has no such name.

    Raises:
        ModuleNotFoundError: if there is no such module. What is missing inside the module is raised as it is.
    """
    if str(Path.cwd()) not in sys.path:  # an installed command does not look for modules in the working folder
        sys.path.insert(0, str(Path.cwd()))
    module_name, _, name = target.partition(":")
    return getattr(importlib.import_module(module_name), name, None)


def lacks_module(error: ModuleNotFoundError, target: str) -> bool:
    """Whether it is the module of ``module:name`` that is missing, and not one that it imports."""
    module_name = target.partition(":")[0]
    return error.name in (module_name.partition(".")[0], module_name)


def _of_target(point: str, target: str) -> Any:
    module_name, _, class_name = target.partition(":")
    try:
        found = find_named(target)
    except ModuleNotFoundError as error:
        if not lacks_module(error, target):
            raise  # the user's module imports something that is missing: its traceback shows what
        raise ConfigError(
            f"{point} {target!r}: there is no module {module_name!r} in the working folder or among the installed "
            "packages"
        ) from None
    if found is None:
        raise ConfigError(f"{point} {target!r}: the module {module_name!r} has no {class_name!r}")
    absent = [name for name in POINTS[point].requires if not hasattr(found, name)]
    if absent:
        raise ConfigError(f"{point} {target!r} is not {POINTS[point].noun}; it lacks {', '.join(absent)}")
    return found
