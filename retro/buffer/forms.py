"""An episode as JSON: what a line of a file, or a document that somebody wrote by hand, may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from retro.types import Episode, Recalled, Reflection, Split, StopReason, Task, Trajectory, Usage


def _as_reflection(value: Any) -> Any:
    """A text stands for a reflection, and one that names no source was imported."""
    value = {"text": value} if isinstance(value, str) else value
    return {"source": "import", **value} if isinstance(value, Mapping) else value


_OF_TASK = {"environment": "environment", "id": "task", "split": "split", "kind": "kind"}
"""Key of a task as ``to_json`` writes it → key of an episode."""


class EpisodeForm(BaseModel):
    """The schema. Three ways of writing are read alike: a line of our own, ``to_json`` of an episode (its task is an
    object), and a trajectory's ``opening`` and ``steps`` beside the other keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)  # also for the dataclasses in it
    environment: str = ""
    task: str = ""
    trajectory: Trajectory
    return_: Annotated[float | None, Field(validation_alias=AliasChoices("return", "return_"))] = None
    success: bool = False
    id: Annotated[str, Field(max_length=200)] | None = None
    trial: Annotated[int, Field(ge=0)] = 0
    parent: str | None = None
    reflection: Annotated[Reflection | None, BeforeValidator(_as_reflection)] = None
    recalled: Recalled | None = None
    split: Split | None = None
    kind: str = ""
    stop: StopReason | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    usage: Usage = Usage()
    info: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _one_way(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        tree = dict(tree)
        if "trajectory" not in tree and ("opening" in tree or "steps" in tree):
            tree["trajectory"] = {key: tree.pop(key) for key in ("opening", "steps") if key in tree}
        task = tree.get("task")
        if (
            isinstance(task, Mapping)
            and task.keys() == _OF_TASK.keys()
            and tree.keys().isdisjoint(task.keys() - {"id"})
        ):
            tree |= {_OF_TASK[key]: value for key, value in task.items()}
        return tree

    def episode(self, id: str, split: Split) -> Episode:
        """The episode, with an id and a split where the form has none; its return is by default the sum of the
        rewards."""
        rewards = sum(step.reward for step in self.trajectory.steps)
        return Episode(
            id=self.id or id,
            task=Task(self.environment, self.task, self.split or split, self.kind),
            trial=self.trial,
            trajectory=self.trajectory,
            return_=rewards if self.return_ is None else self.return_,
            success=self.success,
            stop=self.stop or (StopReason.SUCCESS if self.success else StopReason.FAILURE),
            parent=self.parent,
            reflection=self.reflection,
            recalled=self.recalled or Recalled(),
            seed=self.seed,
            usage=self.usage,
            info=self.info,
        )


class LineForm(EpisodeForm):
    """An episode that a buffer may hold: it has a task and an outcome."""

    environment: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    return_: Annotated[float, Field(validation_alias=AliasChoices("return", "return_"), ge=0, le=1)]
    success: bool
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class DocumentForm(EpisodeForm):
    """A trajectory to reflect on; all other keys are optional."""

    memory: list[str] | None = None
    """Earlier reflections on the same task, oldest first."""
