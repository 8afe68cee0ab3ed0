"""Use RetroAgent in an environment of your own, given as two functions: `python examples/own_environment.py EXPORT`.

The example plays rooms of the household, so that the quickstart's actor knows the words. RetroAgent sees only `reset`
and `step`. Replace these two by your game, shell or browser, and the actor by one that can play it.
"""

import sys

from retro import FunctionEnvironment, RetroAgent, RetrospectiveModel
from retro.actors.local import LocalActor, LocalOptions
from retro.envs import make_taskset
from retro.types import Split, Task


class Rooms:
    def __init__(self) -> None:
        self.rooms = make_taskset("household")

    def reset(self, task_id: str) -> str:
        """Start the task again and return the opening observation, which states the task."""
        self.room = self.rooms.make(Task("household", task_id, Split.TEST))
        return self.room.reset()[0]

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, object]]:
        """Return (observation, reward, terminated, truncated, info). The rewards add up to the return, in [0, 1]."""
        return self.room.step(action)


def main(export: str) -> None:
    rooms = Rooms()
    agent = RetroAgent(
        actor=LocalActor.from_options(LocalOptions(model="data/quickstart/actor")),
        environment=FunctionEnvironment(rooms.reset, rooms.step, name="my rooms"),
        model=RetrospectiveModel.load(export),
        attempts=3,
    )
    for task_id in ("test-1000", "test-1001"):
        for episode in agent.run(task_id):
            if episode.reflection:
                print(f"    reflection: {episode.reflection.text}")
            print(f"{task_id}, attempt {episode.trial + 1}: return {episode.return_:.2f}, success {episode.success}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/own_environment.py EXPORT, for example runs/quickstart/export")
    main(sys.argv[1])
