"""An environment of one's own: find a number with five guesses. A task set names tasks, and makes each from its id.
Run this file to check that it keeps the contract; docs/your-own-environment.md explains each part."""

from retro.envs.base import Environment, StepResult, TaskSet, UnknownTaskError
from retro.envs.testing import check_environment
from retro.types import Split, Task, derive_seed


class Guessing(Environment):
    def __init__(self, secret: int, horizon: int) -> None:
        self.secret, self.horizon = secret, horizon

    def reset(self, seed: int | None = None, options: object = None) -> tuple[str, dict[str, bool]]:
        self.steps, self.score, self.success = 0, 0.0, False
        return f"Guess a number from 1 to 100 in {self.horizon} guesses.", {"success": False}

    def step(self, action: str) -> StepResult:
        if self.success or self.steps == self.horizon:
            return self.answer("The play is over.", 0.0)
        self.steps += 1
        guess = int(action) if action.isdecimal() and len(action) <= 3 else 0
        if not 1 <= guess <= 100:
            return self.answer(f"{action[:100]!r} is not a guess: write a number from 1 to 100.", 0.0)
        self.success = guess == self.secret
        if self.success:
            return self.answer("That is it.", 1.0)
        return self.answer("Higher." if guess < self.secret else "Lower.", 0.5 - abs(guess - self.secret) / 200)

    def answer(self, observation: str, score: float) -> StepResult:
        """The return is the best guess's score, so the reward is what this guess added to it."""
        reward, self.score = max(score - self.score, 0.0), max(score, self.score)
        truncated = not self.success and self.steps == self.horizon
        return observation, reward, self.success, truncated, {"success": self.success}


class GuessingTasks(TaskSet):
    name = "guessing"

    def __init__(self, horizon: int = 5) -> None:
        self.horizon = horizon

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        if offset + count > 1000:
            raise ValueError(f"guessing: split {split} has 1000 tasks, {offset + count} were asked for")
        return [Task(self.name, f"{split}-{number}", split) for number in range(offset, offset + count)]

    def make(self, task: Task) -> Guessing:
        split, _, number = task.id.partition("-")
        if split not in set(Split) or not number.isdecimal() or int(number) >= 1000:
            raise UnknownTaskError(f"guessing: no task {task.id!r}; ids are train-0 to train-999, test-0 …")
        return Guessing(1 + derive_seed(self.name, task.id) % 100, self.horizon)

    def oracle(self, task: Task) -> str:
        return f"The number is {self.make(task).secret}."


if __name__ == "__main__":
    check_environment(GuessingTasks())
    print("guessing keeps the contract")
