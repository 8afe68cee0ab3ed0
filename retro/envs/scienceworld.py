"""ScienceWorld (Wang et al. 2022, arXiv 2203.07540): 30 kinds of elementary science experiments in a text world.

The simulator of the package ``scienceworld`` (1.2.3, Apache-2.0) runs in Java, one process a play: it keeps its random
generator and its counters in global variables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from threading import Lock

from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.java import JavaProcess, find_java
from retro.envs.java_games import Engine, EnginePool, Game, JavaPlay, Turn, at_least_one, echo
from retro.types import Split, Task

SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "selfWateringFlowerPots",
    "openContainers",
    "openDoors",
    "noElectricalAction",
)
"""Upstream's; ``easy`` is all of the others, except that the tasks on electricity keep their actions."""
ELECTRICAL = ("power-component", "conductivity")
"""In the names of tasks that cannot be solved without electrical actions."""

_INTERFACE = "scienceworld.runtime.pythonapi.PythonInterface"
_VARIATIONS = {
    Split.TRAIN: "getVariationsTrain",
    Split.VALIDATION: "getVariationsDev",
    Split.TEST: "getVariationsTest",
}
_NO_SUCH_ACTION = "No known action matches that input."
_QUESTION = "Ambiguous request:"
_UNANSWERED = "Unknown action."
_BLANK, _ANYTHING_ELSE = "(or blank to cancel)", "(anything else cancels)"
"""An actor's action is never blank."""


class ScienceworldGame(Game):
    """One variation of one task."""

    def __init__(self, kind: str, variation: int, simplification: str) -> None:
        self._load = (kind, variation, simplification)
        self._forms = ""
        self._was_asked = False

    @property
    def allowed(self) -> str:
        return f"Allowed: {self._forms}; OBJ is something that the action 'objects' lists, written as it is there."

    def start(self, engine: Engine) -> Turn:
        engine.call("load", *self._load, False)
        self._was_asked = False
        self._forms = _grouped(engine.texts("getPossibleActions"))
        look = self._act(engine, "look around")
        return Turn(f"{engine.call('getTaskDescription')}\n\n{look.observation}", look.score, look.over)

    def act(self, engine: Engine, action: str) -> Turn:
        was_asked, self._was_asked = self._was_asked, False
        turn = self._act(engine, action)
        if turn.observation.startswith(_QUESTION):
            self._was_asked = True
        elif turn.observation.startswith(_UNANSWERED) and was_asked:
            text = f"'{echo(action)}' is none of the numbers asked for: nothing was done. Give the whole action again."
            return Turn(text, turn.score, turn.over)
        elif turn.observation.startswith((_NO_SUCH_ACTION, _UNANSWERED)):
            return Turn(f"No known action matches '{echo(action)}'. {self.allowed}", turn.score, turn.over)
        return turn

    def _act(self, engine: Engine, action: str) -> Turn:
        observation = engine.call("step", action).strip().replace(_BLANK, _ANYTHING_ELSE)
        return Turn(observation, round(100 * engine.call("getScore")) / 100, engine.call("getCompleted"))


class ScienceworldTasks(TaskSet):
    """ScienceWorld's tasks: 30 kinds, each with upstream's train, development and test variations.

    Args:
        kinds: Which of the 30, by upstream's names; all by default.
        simplification: Upstream's, separated by commas; empty for none.
        steps: The step limit.
        engines: How many Java processes play at once. More plays wait for one.

    Raises:
        ValueError: for a kind or a simplification that there is not, or if there is no Java.
    """

    name = "scienceworld"
    blocking = True

    def __init__(
        self,
        kinds: Sequence[str] | None = None,
        simplification: str = "easy",
        steps: int = 100,
        engines: int = 16,
    ) -> None:
        try:
            from scienceworld.constants import ID2TASK, JAR_PATH
        except ImportError as error:
            raise ValueError(f"scienceworld needs {error.name}: pip install 'retro[scienceworld]'") from None
        self._kinds = _chosen(kinds, list(ID2TASK.values()))
        self._simplification = _checked(simplification, self._kinds)
        self._steps = at_least_one(self.name, "steps", steps)
        engines = at_least_one(self.name, "engines", engines)
        start = partial(JavaProcess, self.name, find_java(), Path(JAR_PATH))
        self._engines = EnginePool(start, _INTERFACE, engines)
        self._lock = Lock()
        self._variations: dict[str, dict[Split, list[int]]] = {}
        self._gold: dict[str, tuple[str, ...]] = {}

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """The kinds in turn, each with its variations in upstream's order: few tasks are of as many kinds as can be."""
        columns = [
            [Task(self.name, f"{kind}/{number}", split, kind) for number in variations[split]]
            for kind, variations in self._known().items()
        ]
        found = [task for task in chain.from_iterable(zip_longest(*columns)) if task is not None]
        if offset + count > len(found):
            raise ValueError(f"scienceworld: split {split} has {len(found):,} tasks, {offset + count:,} were asked for")
        return found[offset : offset + count]

    def make(self, task: Task) -> JavaPlay:
        return JavaPlay(task, self._game(task), self._engines, self._steps)

    def oracle(self, task: Task) -> str | None:
        """Upstream's own solution. It may be longer than the step limit."""
        actions = self.gold_path(task)
        return f"these actions, in this order, solve the task: {'; '.join(actions)}." if actions else None

    def gold_path(self, task: Task) -> tuple[str, ...]:
        """The actions by which upstream's scripted agent solves a task; found by playing, a second to a minute.

        Raises:
            UnknownTaskError: if the id is not one of this environment's.
            EnvironmentFailedError: if its engine fails.
        """
        kind, variation = self._parsed(task)
        if task.id not in self._gold:
            engine = self._engines.borrow(wait=False)
            try:
                engine.call("load", kind, variation, self._simplification, True)
                self._gold[task.id] = tuple(engine.texts("getGoldActionSequence"))
            finally:
                self._engines.give_back(engine)
        return self._gold[task.id]

    def close(self) -> None:
        self._engines.close()

    def _game(self, task: Task) -> ScienceworldGame:
        return ScienceworldGame(*self._parsed(task), self._simplification)

    def _parsed(self, task: Task) -> tuple[str, int]:
        kind, _, number = task.id.rpartition("/")
        known = self._known().get(kind, {}).values()
        if not number.isdecimal() or str(int(number)) != number or not any(int(number) in part for part in known):
            raise UnknownTaskError(
                f"scienceworld: no task {task.id!r} of these kinds; ids look like {self._kinds[0]}/12"
            )
        return kind, int(number)

    def _known(self) -> dict[str, dict[Split, list[int]]]:
        """The variations of every kind, as upstream splits them; asked once."""
        with self._lock:
            if not self._variations:
                engine = self._engines.borrow(wait=False)
                try:
                    self._variations = {kind: _split(engine, kind) for kind in self._kinds}
                finally:
                    self._engines.give_back(engine)
            return self._variations


def _split(engine: Engine, kind: str) -> dict[Split, list[int]]:
    engine.call("taskStr_$eq", kind)  # upstream's splits depend on nothing else, and to load a task takes far longer
    found = {}
    for split, method in _VARIATIONS.items():
        numbers = engine.call(method)
        found[split] = json.loads(engine.process.call(numbers, "toString"))
        engine.process.release(numbers)
    return found


def _chosen(kinds: Sequence[str] | None, known: list[str]) -> list[str]:
    if kinds is None:
        return known
    if not isinstance(kinds, (list, tuple)) or not kinds:
        raise ValueError(f"scienceworld: kinds must be a list of names, not {kinds!r}")
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise ValueError(f"scienceworld: kinds: there is no {unknown[0]!r}; there are: {', '.join(known)}")
    return [kind for kind in known if kind in kinds]


def _checked(simplification: str, kinds: list[str]) -> str:
    if not isinstance(simplification, str):
        raise ValueError(f"scienceworld: simplification must be a text, not {simplification!r}")
    parts = [part.strip() for part in simplification.split(",") if part.strip()]
    unknown = [part for part in parts if part not in SIMPLIFICATIONS]
    if unknown:
        raise ValueError(f"scienceworld: simplification: no {unknown[0]!r}; there are: {', '.join(SIMPLIFICATIONS)}")
    electrical = [kind for kind in kinds if any(part in kind for part in ELECTRICAL)]
    if "noElectricalAction" in parts and electrical:
        raise ValueError(
            f"scienceworld: simplification: {electrical[0]} cannot be solved with noElectricalAction; leave it out of "
            "`kinds`, or use easy, which spares those"
        )
    return ",".join(parts)


def _grouped(forms: list[str]) -> str:
    """``open OBJ``, ``close OBJ``, ``wait`` as ``close/open OBJ, wait``."""
    by_rest: dict[str, list[str]] = {}
    for form in sorted(forms):
        verb, found, rest = form.partition(" OBJ")
        by_rest.setdefault(found + rest, []).append(verb)
    return ", ".join("/".join(verbs) + rest if rest else ", ".join(verbs) for rest, verbs in by_rest.items())
