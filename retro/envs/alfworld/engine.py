"""ALFWorld's engine for one game, in two forms. Only worker processes import this module.

:class:`CachedGame` plays on TextWorld's ``PddlState``, translates a problem once instead of four times
(:mod:`retro.envs.alfworld.translation`), parses a grammar once, and derives texts with
:mod:`retro.envs.alfworld.text`. It depends on TextWorld's internals, so it is used only with the versions that it was
checked with. With other versions :class:`UpstreamGame` plays on TextWorld's and ALFWorld's own classes. Neither patches
them.

Source: TextWorld 1.7.0 (``textworld/envs/pddl``), ALFWorld 0.4.2 (``AlfredDemangler``), both MIT.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, Protocol

import fast_downward
import textworld
from alfworld.agents.utils.misc import Demangler
from textworld.envs.pddl import PddlEnv
from textworld.envs.pddl import logic as pddl_logic
from textworld.logic import Proposition, Type, TypeHierarchy, Variable

from retro.envs.alfworld.text import Context, Entity, Narrator
from retro.envs.alfworld.translation import Translation, translate

CHECKED_VERSIONS = {"textworld": "1.7.0", "alfworld": "0.4.2"}
"""The versions for which a test found equal transcripts from both engines."""
INTRO = "#intro#"
NOTHING_HAPPENS = "Nothing happens."
_GOAL = re.compile(r'(?<="rhs": "Your task is to: )[\w ,.\'-]+(?=")')
_GOAL_STANDS_HERE = "goal-of-this-game"
HELP = "help"
"""The engine lists it as an admissible command. It changes nothing, and its answer is long."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The engine's answer to a command."""

    feedback: str
    commands: tuple[str, ...]
    """The possible commands, sorted, without ``help``."""
    won: bool


class Game(Protocol):
    """One play of a game."""

    @property
    def state(self) -> Any:
        """Its facts (``textworld.logic.State``)."""
        ...

    def start(self) -> Scene: ...

    def step(self, command: str) -> Scene: ...

    def close(self) -> None: ...


def open_game(data: Mapping[str, Any]) -> Game:
    """The game of ``pddl_domain``, ``grammar`` and ``pddl_problem``, on the fast engine if the versions fit."""
    installed = {package: version(package) for package in CHECKED_VERSIONS}
    if installed == CHECKED_VERSIONS:
        return CachedGame(data)
    warnings.warn(
        f"alfworld: the cached engine was checked with {CHECKED_VERSIONS}, installed is {installed}: games are played "
        "by TextWorld's own, slower one",
        stacklevel=2,
    )
    return UpstreamGame(data)


class UpstreamGame:
    """A game as ALFWorld plays it."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

        self._env = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True, won=True)))
        self._env.load(dict(data))
        Narrator(self._env._logic.grammar._rules)  # refuses a grammar that runs code

    @property
    def state(self) -> Any:
        return self._env._pddl_state

    def start(self) -> Scene:
        return self._scene(self._env.reset())

    def step(self, command: str) -> Scene:
        return self._scene(self._env.step(command)[0])

    def close(self) -> None:
        """Leave its library loaded: unloading one ends in a segmentation fault at a later load."""

    def _scene(self, state: Any) -> Scene:
        return Scene(state.feedback, _without_help(state["admissible_commands"]), bool(state["won"]))


class CachedGame:
    """The same game, without doing anything twice."""

    _free_libraries: list[Any] = []

    def __init__(self, data: Mapping[str, Any]) -> None:
        text, self._goal = _without_goal(data["grammar"])
        grammar = _read_grammar(text)
        self._problem = translate(data["pddl_domain"], data["pddl_problem"])
        self._actions = grammar.actions
        self._narrator = grammar.narrator
        self._library = self._free_libraries.pop() if self._free_libraries else fast_downward.load_lib()
        self._choices: dict[str, Any] = {}
        changing = self._problem.changing()
        needs = {action.template: grammar.narrator.needs(action.template) for action in grammar.actions.values()}
        self._lasting = {text: one.names for text, one in needs.items() if one.predicates.isdisjoint(changing)}
        self._commands: dict[tuple[str, ...], str] = {}

    @property
    def state(self) -> Any:
        return self._state

    def start(self) -> Scene:
        self._state = _State(self._library, self._problem, self._actions)
        self._entities = _entities(self._state)
        return self._scene(self._narrator.say(INTRO, self._context({})))

    def step(self, command: str) -> Scene:
        action = self._choices.get(command)
        if action is None:
            return self._scene(NOTHING_HAPPENS)
        self._state.apply(action)
        return self._scene(self._narrator.say(action.feedback_rule, self._context(action.mapping)))

    def close(self) -> None:
        """Give the planner's library to the next game; unloading it would crash a later load."""
        self._free_libraries.append(self._library)
        del self._library, self._state

    def _context(self, mapping: Mapping[Any, Any]) -> Context:
        return Context(self._state, self._entities, mapping)

    def _scene(self, feedback: str) -> Scene:
        self._choices = {}
        for action in self._state.all_applicable_actions():
            self._choices.setdefault(self._command(action), action)
        told = feedback.replace(_GOAL_STANDS_HERE, self._goal)
        return Scene(told, _without_help(self._choices), bool(self._state.check_goal()))

    def _command(self, action: Any) -> str:
        """The command of an action. It is derived once, unless it depends on facts that actions change."""
        template = action.command_template
        if template not in self._lasting:
            return self._derived(action)
        names = self._lasting[template]
        key = (template, *(variable.name for given, variable in action.mapping.items() if given.name in names))
        if key not in self._commands:
            self._commands[key] = self._derived(action)
        return self._commands[key]

    def _derived(self, action: Any) -> str:
        action.command_template = self._narrator.say(action.command_template, self._context(action.mapping))
        command: str = action.format_command({id: entity.name for id, entity in self._entities.items()})
        return command


@dataclass(frozen=True, slots=True)
class _Grammar:
    actions: Mapping[str, Any]
    narrator: Narrator


def _without_goal(grammar: str) -> tuple[str, str]:
    """The grammar with a word in place of its goal, in which alone the grammars of a release differ; and the goal.

    A grammar whose goal is more than plain words stays as it is.
    """
    found = _GOAL.search(grammar)
    if found is None or _GOAL_STANDS_HERE in grammar:
        return grammar, _GOAL_STANDS_HERE
    return grammar[: found.start()] + _GOAL_STANDS_HERE + grammar[found.end() :], found[0]


@lru_cache(maxsize=8)
def _read_grammar(text: str) -> _Grammar:
    """Reading one takes about a second."""
    logic = pddl_logic.GameLogic(domain="", grammar=text)
    return _Grammar(logic.actions, Narrator(logic.grammar._rules))


class _State(pddl_logic.PddlState):  # type: ignore[misc]  # TextWorld ships no types
    """``PddlState`` of a problem that is already translated, with facts in the order in which they are needed.

    The constructor of ``PddlState`` translates twice, the second time for a planner that is not used here.
    """

    def __init__(self, library: Any, problem: Translation, actions: Mapping[str, Any]) -> None:
        types = TypeHierarchy()
        for name, parents in problem.parents_of.items():
            types.add(Type(name, parents))
        self._logic = SimpleNamespace(types=types, actions=actions)
        self._facts: dict[Any, set[Any]] = defaultdict(set)
        self._vars_by_name: dict[str, Any] = {}
        self._vars_by_type: dict[str, set[Any]] = defaultdict(set)
        self._var_counts: Counter[str] = Counter()
        self._sorted: dict[Any, tuple[Any, ...]] = {}
        self._actions = {
            name: SimpleNamespace(parameters=[SimpleNamespace(name=one, type_name=kind) for one, kind in parameters])
            for name, parameters in problem.parameters_of.items()
        }
        self.name2type = problem.type_of
        self.downward_lib = library
        library.load_sas(problem.sas.encode())
        self.add_facts(
            Proposition(predicate, [Variable(name, problem.type_of[name]) for name in names])
            for predicate, names in problem.facts
        )
        atoms = (pddl_logic.Atom * library.get_state_size())()
        library.get_state(atoms)
        facts = [atom.get_fact(self.name2type) for atom in atoms]
        self.add_facts(fact for fact in facts if not fact.is_negation)

    def facts_with_signature(self, sig: Any) -> tuple[Any, ...]:
        """The facts of a signature, sorted, so that sorting them in ``all_assignments`` takes little time."""
        if sig not in self._sorted:
            self._sorted[sig] = tuple(sorted(super().facts_with_signature(sig)))
        return self._sorted[sig]

    def add_fact(self, prop: Any) -> None:
        self._sorted.pop(prop.signature, None)
        super().add_fact(prop)

    def remove_fact(self, prop: Any) -> None:
        self._sorted.pop(prop.signature, None)
        super().remove_fact(prop)


def _entities(state: _State) -> dict[str, Entity]:
    ids = {variable.name for fact in state.facts for variable in fact.arguments}
    demangler = Demangler(game_infos={id: SimpleNamespace(id=id) for id in ids})
    return {id: Entity(id, demangler.demangle_alfred_name(id)) for id in ids}


def _without_help(commands: Any) -> tuple[str, ...]:
    return tuple(sorted(set(commands) - {HELP}))
