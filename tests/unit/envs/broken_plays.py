"""The guessing game with a state, and one broken play of it for each rule of the contract."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from examples.extensions.guessing_game import Guessing, GuessingTasks
from retro.envs.base import StepResult
from retro.types import Task


class Play(Guessing):
    """The guessing game, with a state."""

    def snapshot(self) -> Any:
        return {"steps": self.steps, "score": self.score, "success": self.success}

    def restore(self, state: Any) -> None:
        self.steps, self.score, self.success = state["steps"], state["score"], state["success"]


class Tasks(GuessingTasks):
    def __init__(self, play: type[Guessing] = Play) -> None:
        super().__init__()
        self.play = play

    def make(self, task: Task) -> Guessing:
        sound = super().make(task)
        return self.play(sound.secret, sound.horizon)


class ThatHasNoClose:
    def __init__(self, secret: int, horizon: int) -> None:
        self.play = Play(secret, horizon)
        self.reset, self.step = self.play.reset, self.play.step
        self.snapshot, self.restore = self.play.snapshot, self.play.restore


class OpeningAlone(Play):
    def reset(self, seed: int | None = None, options: object = None) -> Any:
        return super().reset(seed)[0]


class EmptyOpening(Play):
    def reset(self, seed: int | None = None, options: object = None) -> Any:
        return "", super().reset(seed)[1]


class SuccessLeftOutOfReset(Play):
    def reset(self, seed: int | None = None, options: object = None) -> Any:
        return super().reset(seed)[0], {}


class Raises(Play):
    def step(self, action: str) -> StepResult:
        int(action)
        return super().step(action)


class FourValues(Play):
    def step(self, action: str) -> Any:
        return super().step(action)[:4]


class EmptyObservation(Play):
    def step(self, action: str) -> StepResult:
        return ("", *super().step(action)[1:])


class NotANumber(Play):
    def step(self, action: str) -> StepResult:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


class NumpyLikeEnds(Play):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, int(terminated), int(truncated), info


class SuccessLeftOutOfStep(Play):
    def step(self, action: str) -> Any:
        return (*super().step(action)[:4], {})


class SuccessAndGoesOn(Play):
    def step(self, action: str) -> StepResult:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, info


class DrawsByItself(Play):
    number: ClassVar[Any] = itertools.count()

    def step(self, action: str) -> StepResult:
        return (f"Answer {next(self.number)}.", *super().step(action)[1:])


class ForgetsNothing(Play):
    """What it answers depends on plays before the reset."""

    def __init__(self, secret: int, horizon: int) -> None:
        super().__init__(secret, horizon)
        self.resets = 0

    def reset(self, seed: int | None = None, options: object = None) -> tuple[str, dict[str, bool]]:
        self.resets += 1
        return super().reset(seed)

    def answer(self, observation: str, score: float) -> StepResult:
        return super().answer(f"{observation} ({self.resets})", score)


class SharesItsState(Play):
    """Reset starts over all plays there are."""

    shared: ClassVar[dict[str, int]] = {}

    def reset(self, seed: int | None = None, options: object = None) -> tuple[str, dict[str, bool]]:
        self.shared["guesses"] = 0
        return super().reset(seed)

    def answer(self, observation: str, score: float) -> StepResult:
        self.shared["guesses"] += 1
        return super().answer(f"{observation} ({self.shared['guesses']})", score)


class PaysTwice(Play):
    def step(self, action: str) -> StepResult:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 2 * reward, terminated, truncated, info


class Punishes(Play):
    def step(self, action: str) -> StepResult:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward if self.success else -0.1, terminated, truncated, info


class EchoesAll(Play):
    def step(self, action: str) -> StepResult:
        return (f"{action} is no guess", *super().step(action)[1:])


class NeverEnds(Play):
    def step(self, action: str) -> StepResult:
        return (*super().step(action)[:3], False, {"success": False})


class InvalidCostsNothing(Play):
    def step(self, action: str) -> StepResult:
        result = super().step(action)
        if not action.isdecimal():
            self.steps -= 1
        return (*result[:3], self.steps == self.horizon, result[4])


class GoesOnAfterTheEnd(Play):
    def step(self, action: str) -> StepResult:
        observation, reward, terminated, _, info = super().step(action)
        self.steps, ended = self.steps % self.horizon, self.steps == self.horizon
        return observation, reward, terminated, ended and not terminated, info


class TuplesInTheState(Play):
    def snapshot(self) -> Any:
        return {"steps": self.steps, "scores": (self.score,)}


class ObjectsInTheState(Play):
    def snapshot(self) -> Any:
        return {"play": self}


class CountsItsSnapshots(Play):
    def snapshot(self) -> Any:
        self.steps += 1
        return super().snapshot()


class LendsItsState(Play):
    def reset(self, seed: int | None = None, options: object = None) -> tuple[str, dict[str, bool]]:
        self.done: list[str] = []
        return super().reset(seed)

    def step(self, action: str) -> StepResult:
        self.done.append(action)
        return super().step(action)

    def snapshot(self) -> Any:
        return self.done


class LosesItsSteps(Play):
    def restore(self, state: Any) -> None:
        super().restore({**state, "steps": 0})


class RestoresOnlyItself(Play):
    def snapshot(self) -> Any:
        self.kept = super().snapshot()
        return {}

    def restore(self, state: Any) -> None:
        super().restore(getattr(self, "kept", {"steps": 0, "score": 0.0, "success": False}))


class ClosesOnce(Play):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("closed already")
        self.closed = True


BROKEN_PLAYS: list[tuple[type[Any], str]] = [
    (ThatHasNoClose, "members of retro.envs.base.Environment .*: ThatHasNoClose has no close"),
    (OpeningAlone, r"reset\(\) returns \(opening, info\)"),
    (EmptyOpening, "an opening that is not empty"),
    (SuccessLeftOutOfReset, r'info\["success"\] False'),
    (Raises, "never by an exception: the action 'zzqx' raised ValueError"),
    (FourValues, r"step\(\) returns a tuple"),
    (EmptyObservation, "an observation is a text that is not empty"),
    (NotANumber, "a reward is a finite float"),
    (NumpyLikeEnds, "terminated and truncated are True or False"),
    (SuccessLeftOutOfStep, r'info\["success"\] is True or False after every step'),
    (SuccessAndGoesOn, "success comes with terminated"),
    (DrawsByItself, "plays equally again: step 1"),
    (ForgetsNothing, "an environment that is reset plays equally again: step 1"),
    (SharesItsState, "plays that go on side by side do not touch one another: step 3"),
    (PaysTwice, r"add up to a return in \[0, 1\].* add up to 2"),
    (Punishes, r"add up to a return in \[0, 1\].* add up to -0.1"),
    (EchoesAll, "at most 2,000 characters"),
    (NeverEnds, "every play ends: 1000 invalid actions did not end it"),
    (InvalidCostsNothing, "every step counts, also an invalid one"),
    (GoesOnAfterTheEnd, "a step after the end changes nothing"),
    (TuplesInTheState, "a snapshot is plain JSON: .* comes back as"),
    (ObjectsInTheState, "a snapshot is plain JSON: .*not JSON serializable"),
    (CountsItsSnapshots, r"snapshot\(\) does not touch the play"),
    (LendsItsState, "a snapshot does not change while the play goes on"),
    (LosesItsSteps, r"a play goes on from restore\(\) as it did from snapshot\(\)"),
    (RestoresOnlyItself, "restored in another environment of the same task"),
    (ClosesOnce, r"close\(\) can be called twice"),
]
