"""The registry of kinds: every variant of every extension point, by name, and the config sections that choose one.

A built-in kind is one file that holds its options and its behaviour side by side::

    class LocalOptions(ActorSection):        # every key that this kind reads, documented
        kind: Literal["local"] = "local"
        ...

    class LocalActor:
        Options = LocalOptions

        @classmethod
        def from_options(cls, options: LocalOptions, **parts) -> LocalActor: ...

and one line in :data:`POINTS`. Somebody else's kind is ``kind: package.module:Class`` with ``options: {...}``, which
that class's own ``Options`` validates. A class is imported when a config names its kind, so its file imports torch and
its like inside functions only.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeGuard, TypeVar

from pydantic import SerializeAsAny, ValidationError, create_model
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from retro.config.base import ConfigError, Section


@dataclass(frozen=True, slots=True)
class Kind:
    """One built-in variant; its module is imported when it is asked for."""

    target: str
    """``module:Class``."""
    summary: str
    extra: str | None = None
    """What ``pip install 'retro[…]'`` must bring."""
    packages: tuple[str, ...] = ()
    """The import names that the extra brings."""
    data: str = ""
    """How to get its data; empty if it needs none."""
    speed: tuple[str, ...] = ()
    """Options of a task set that say how fast it plays, not what happens in it. (Other kinds' options are sections, and
    mark such keys ``Speed``.)"""

    @property
    def missing(self) -> list[str]:
        """The packages that it needs and that are not installed."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


@dataclass(frozen=True, slots=True)
class Point:
    """A place where variants can be put in: an extension point."""

    summary: str
    noun: str
    """What a class of it is, with its article, for error messages."""
    requires: tuple[str, ...]
    """The attributes by which a class is known to be one."""
    kinds: dict[str, Kind]


_BUILT = ("from_options",)

POINTS: dict[str, Point] = {
    "environment": Point(
        "where tasks are played",
        "a task set: name the class that derives from retro.envs.base.TaskSet",
        ("tasks", "make"),
        {
            "household": Kind(
                "retro.envs.household:HouseholdTasks",
                "a text household in ALFWorld's words; the quickstart's, built in",
            ),
            "hotpotqa": Kind(
                "retro.envs.hotpotqa:HotpotQATasks",
                "questions over two Wikipedia pages: Search, Lookup, Finish",
                data="hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json from hotpotqa.github.io",
            ),
            "alfworld": Kind(
                "retro.envs.alfworld:AlfworldTasks",
                "household tasks on the TextWorld engine",
                extra="alfworld",
                packages=("alfworld", "textworld"),
                data="the folder json_2.1.1, by the package's command alfworld-download",
                speed=("workers", "games_per_worker"),
            ),
            "webshop": Kind(
                "retro.envs.webshop:WebshopTasks",
                "a shop of real products: find and buy what an instruction asks for",
                data="items_shuffle.json, items_ins_v2.json and items_human_ins.json of princeton-nlp/WebShop",
                speed=("prepared",),
            ),
            "scienceworld": Kind(
                "retro.envs.scienceworld:ScienceworldTasks",
                "30 kinds of elementary science experiments",
                extra="scienceworld",
                packages=("scienceworld",),
                speed=("engines",),
            ),
            "textworld-express": Kind(
                "retro.envs.textworld_express:TextworldExpressTasks",
                "short text games: coin, cooking, sorting, arithmetic …",
                extra="textworld-express",
                packages=("textworld_express",),
                speed=("engines",),
            ),
            "gymnasium": Kind(
                "retro.envs.gymnasium:GymnasiumTasks",
                "any gymnasium.Env with text observations and actions",
                extra="gymnasium",
                packages=("gymnasium",),
            ),
            "mixture": Kind("retro.envs.mixture:MixtureTasks", "the tasks of several environments, in turn"),
        },
    ),
    "actor": Point(
        "the frozen language model that plays",
        "an actor",
        _BUILT,
        {
            "local": Kind("retro.actors.local:LocalActor", "a transformers checkpoint in this process"),
            "openai": Kind("retro.actors.openai:OpenAIActor", "any OpenAI-compatible endpoint"),
        },
    ),
    "memory": Point(
        "what carries experience into the actor's prompt",
        "a memory",
        _BUILT,
        {"window": Kind("retro.memory.window:ReflectionWindow", "the latest reflections on this task (Reflexion)")},
    ),
    "generator": Point(
        "what samples the retrospective model's tokens",
        "a generator",
        _BUILT,
        {"engine": Kind("retro.retrospective.generator:EngineGenerator", "our engine, on the base that is trained")},
    ),
    "sampler": Point(
        "how one reflection is chosen among those that the model could write",
        "a sampler",
        _BUILT,
        {
            "first": Kind("retro.retrospective.samplers.first:First", "the first one that is drawn"),
            "best_of": Kind(
                "retro.retrospective.samplers.best_of:BestOf", "the best of N by the reward model's score (Best-of-N)"
            ),
        },
    ),
    "runner": Point(
        "what plays many attempts at once",
        "a runner",
        _BUILT,
        {"local": Kind("retro.rollout.runner:LocalRunner", "this process, actor.concurrency attempts at once")},
    ),
    "reward": Point(
        "a term of what a sampled reflection is worth to the algorithm",
        "a reward",
        ("Options", "needs"),
        {
            "environment": Kind(
                "retro.training.rewards.environment:EnvironmentReward",
                "the actor's own retry with the reflection: the true gain in return",
            ),
            "over_control": Kind(
                "retro.training.rewards.over_control:OverControlReward",
                "the actor's retry beyond the mean of retries without a reflection",
            ),
            "model": Kind("retro.training.rewards.model:ModelReward", "the learnt reward model's score"),
        },
    ),
    "algorithm": Point(
        "what turns rewards, or rated reflections, into updates of the policy",
        "an algorithm",
        _BUILT,
        {
            "ppo": Kind("retro.training.algorithms.ppo:Ppo", "proximal policy optimisation, our own"),
            "grpo": Kind("retro.training.algorithms.grpo:Grpo", "group relative policy optimisation, by TRL's trainer"),
            "dpo": Kind(
                "retro.training.algorithms.dpo:Dpo",
                "direct preference optimisation on the buffer's ratings, by TRL's trainer",
            ),
        },
    ),
}
"""Every extension point and its built-in kinds. To add a kind, add its line here."""


def resolve(point: str, kind: str) -> Any:
    """The class behind ``kind``, a built-in name or ``module:Class`` of one's own.

    Raises:
        ConfigError: for an unknown name, a package that is not installed, or a class that does not belong to the point.
    """
    builtin = POINTS[point].kinds.get(kind)
    if builtin is not None and builtin.missing:
        raise ConfigError(f"{point} {kind!r} needs {', '.join(builtin.missing)}: pip install 'retro[{builtin.extra}]'")
    return _load(point, kind)


def build(section: KindSection, **parts: Any) -> Any:
    """What ``section`` asks for: its kind's class, made from its options and the ``parts`` that the point hands over.

    Raises:
        ConfigError: if it cannot be made; see :func:`resolve` and the class's ``from_options``.
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
        # the section of somebody's own kind is of a class that is made here: another process makes it again
        return parse_section, (_base_of(type(self)), self.model_dump(mode="json"))


S = TypeVar("S", bound=KindSection)


def is_kind_section(annotation: Any) -> TypeGuard[type[KindSection]]:
    return isinstance(annotation, type) and issubclass(annotation, KindSection)


def section_class(base: type[S], kind: str) -> type[S]:
    """The section of a kind: a built-in one's ``Options``; of one's own, ``base`` with ``options`` beside its keys.

    Raises:
        ConfigError: if there is no such kind.
    """
    found = _load(base.point, kind)
    if kind in POINTS[base.point].kinds:
        options: type[S] = found.Options
        return options
    return _own_section(base.of_own_kinds(), getattr(found, "Options", Section))


def parse_section(base: type[S], value: Any) -> S:
    """Validate a section whose kind is known from its content alone.

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
            f"{point} {kind!r} is not known; {hint}there are: {', '.join(sorted(kinds))}; your own is named "
            "module:ClassName"
        )
    return _of_target(point, kinds[kind].target)


def _of_target(point: str, target: str) -> Any:
    if str(Path.cwd()) not in sys.path:  # an installed command does not look for modules where it is called
        sys.path.insert(0, str(Path.cwd()))
    module_name, _, class_name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0] and error.name != module_name:
            raise  # a module of the user's own imports something that is not there: its traceback is the help
        raise ConfigError(
            f"{point} {target!r}: there is no module {module_name!r} in the working folder or among the installed "
            "packages"
        ) from None
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"{point} {target!r}: the module {module_name!r} has no {class_name!r}")
    absent = [name for name in POINTS[point].requires if not hasattr(found, name)]
    if absent:
        raise ConfigError(f"{point} {target!r} is not {POINTS[point].noun}; it lacks {', '.join(absent)}")
    return found
