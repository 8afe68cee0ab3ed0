"""An agent writes shop notices, and a reward function checks them against rules that the agent does not see."""

from retro.envs.base import Environment, StepResult, TaskSet, UnknownTaskError
from retro.types import Split, Task

THINGS = ("desk lamp", "kettle", "bicycle pump", "garden chair", "wool blanket", "bread knife", "tent", "clock")
TRIES = 2


def reward(notice: str, thing: str, price: int) -> float:
    """The share of the house rules that a notice keeps, in [0, 1]. Put your own reward function here."""
    words = notice.split()
    rules = (
        thing in notice.lower(),
        f"{price} EUR" in notice,
        0 < len(words) <= 12,
        bool(words) and "!" not in notice,
        notice.endswith("While stocks last."),
    )
    return sum(rules) / len(rules)


class Notice(Environment):
    """Two tries at one notice; the return is the better one's score."""

    def __init__(self, thing: str, price: int) -> None:
        self.thing, self.price = thing, price

    def reset(self, seed: int | None = None, options: object = None) -> tuple[str, dict[str, bool]]:
        self.tries, self.best = 0, 0.0
        return f"Write a notice for our shop window: {self.thing}, {self.price} EUR.", {"success": False}

    def step(self, action: str) -> StepResult:
        over = self.best == 1.0 or self.tries == TRIES
        score = 0.0 if over else reward(action, self.thing, self.price)
        gain, self.best, self.tries = max(score - self.best, 0.0), max(score, self.best), self.tries + 1
        success = self.best == 1.0
        observation = (
            "It is over." if over else f"The shop accepts {score:.0%} of it. Write the whole notice, in one line."
        )
        return observation, gain, success, not success and self.tries >= TRIES, {"success": success}


class NoticeTasks(TaskSet):
    name = "notices"

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        prices = {Split.TRAIN: range(10, 70), Split.VALIDATION: range(70, 85), Split.TEST: range(85, 100)}[split]
        ids = [f"{thing} {price}" for price in prices for thing in THINGS]
        if offset + count > len(ids):
            raise ValueError(f"notices: split {split} has {len(ids)} tasks, {offset + count} were asked for")
        return [Task(self.name, id, split) for id in ids[offset : offset + count]]

    def make(self, task: Task) -> Notice:
        thing, _, price = task.id.rpartition(" ")
        if thing not in THINGS or not price.isdecimal():
            raise UnknownTaskError(f"notices: no task {task.id!r}; ids look like 'kettle 25'")
        return Notice(thing, int(price))
