"""ScienceWorld (Wang et al. 2022, arXiv 2203.07540): 30 kinds of elementary science experiments in a text world.

The simulator of the package ``scienceworld`` (1.2.3, Apache-2.0) runs in Java, with one process for each play, since it
keeps its random generator and its counters in global variables.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import chain, zip_longest
from threading import Lock

from retro.config import PositiveInt
from retro.envs.base import UnknownTaskError
from retro.envs.java_games import Engine, Game, JavaTasks, Turn, echo
from retro.envs.options import Names, checked, chosen
from retro.types import Split, Task

SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "selfWateringFlowerPots",
    "openContainers",
    "openDoors",
    "noElectricalAction",
)
"""Upstream's names. ``easy`` is all of the others, except that tasks on electricity keep their actions."""
ELECTRICAL = ("power-component", "conductivity")
"""Parts of the names of tasks that cannot be solved without electrical actions."""

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
"""Upstream's hint, and ours: an actor's action is never blank."""


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

    def solve(self, engine: Engine) -> tuple[str, ...]:
        engine.call("load", *self._load, True)
        return tuple(engine.texts("getGoldActionSequence"))

    def _act(self, engine: Engine, action: str) -> Turn:
        observation = engine.call("step", action).strip().replace(_BLANK, _ANYTHING_ELSE)
        return Turn(observation, round(100 * engine.call("getScore")) / 100, engine.call("getCompleted"))


class ScienceworldTasks(JavaTasks):
    """ScienceWorld's tasks: 30 kinds, each with upstream's train, development and test variations.

    Args:
        kinds: some of the 30, by upstream's names; all by default.
        simplification: upstream's names, separated by commas; may be empty.
        steps: the step limit.
        engines: the number of Java processes that play at once. Further plays wait.

    Raises:
        ValueError: for an unknown kind or simplification, or if there is no Java.
    """

    name = "scienceworld"

    @checked
    def __init__(
        self,
        kinds: Names | None = None,
        simplification: str = "easy",
        steps: PositiveInt = 100,
        engines: PositiveInt = 16,
    ) -> None:
        from scienceworld.constants import ID2TASK, JAR_PATH

        known = list(ID2TASK.values())
        self._kinds = known if kinds is None else chosen(self.name, "kinds", kinds, known)
        self._simplification = _checked(simplification, self._kinds)
        super().__init__(JAR_PATH, _INTERFACE, steps, engines)
        self._lock = Lock()
        self._variations: dict[str, dict[Split, list[int]]] = {}

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        """One task of each kind in turn, so that few tasks are of as many kinds as possible; upstream's order."""
        columns = [
            [Task(self.name, f"{kind}/{number}", split, kind) for number in variations[split]]
            for kind, variations in self._known().items()
        ]
        found = [task for task in chain.from_iterable(zip_longest(*columns)) if task is not None]
        if offset + count > len(found):
            raise ValueError(f"scienceworld: split {split} has {len(found):,} tasks, {offset + count:,} were asked for")
        return found[offset : offset + count]

    def _game(self, task: Task) -> ScienceworldGame:
        kind, _, number = task.id.rpartition("/")
        known = self._known().get(kind, {}).values()
        if not number.isdecimal() or str(int(number)) != number or not any(int(number) in part for part in known):
            raise UnknownTaskError(
                f"scienceworld: no task {task.id!r} of these kinds; ids look like {self._kinds[0]}/12"
            )
        return ScienceworldGame(kind, int(number), self._simplification)

    def _known(self) -> dict[str, dict[Split, list[int]]]:
        """The variations of every kind, as upstream splits them."""
        with self._lock:
            if not self._variations:
                self._variations = {kind: self._asked(partial(_split, kind)) for kind in self._kinds}
            return self._variations


def _split(kind: str, engine: Engine) -> dict[Split, list[int]]:
    engine.call("taskStr_$eq", kind)  # upstream's splits depend on nothing else, and loading a task takes far longer
    found = {}
    for split, method in _VARIATIONS.items():
        numbers = engine.call(method)
        found[split] = json.loads(engine.process.call(numbers, "toString"))
        engine.process.release(numbers)
    return found


def _checked(simplification: str, kinds: list[str]) -> str:
    parts = [part.strip() for part in simplification.split(",") if part.strip()]
    unknown = [part for part in parts if part not in SIMPLIFICATIONS]
    if unknown:
        raise ValueError(
            f"scienceworld: simplification: there is no {unknown[0]!r}; there are: {', '.join(SIMPLIFICATIONS)}"
        )
    electrical = [kind for kind in kinds if any(part in kind for part in ELECTRICAL)]
    if "noElectricalAction" in parts and electrical:
        raise ValueError(
            f"scienceworld: simplification: {electrical[0]} cannot be solved with noElectricalAction; leave it out of "
            "`kinds`, or use easy, which keeps the electrical actions of such kinds"
        )
    return ",".join(parts)


def _grouped(forms: list[str]) -> str:
    """``open OBJ``, ``close OBJ``, ``wait`` as ``close/open OBJ, wait``."""
    by_rest: dict[str, list[str]] = {}
    for form in sorted(forms):
        verb, found, rest = form.partition(" OBJ")
        by_rest.setdefault(found + rest, []).append(verb)
    return ", ".join("/".join(verbs) + rest if rest else ", ".join(verbs) for rest, verbs in by_rest.items())
