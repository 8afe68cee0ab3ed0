"""RetroAgent in an environment of your own, given as two functions: `python examples/own_environment.py EXPORT`.

The room played here is one of the household's, so that the quickstart's actor knows its words; `reset` and `step` are
all that RetroAgent sees of it. Put a game, a shell or a browser in their place, and an actor that can play it.
"""

import sys

from retro import FunctionEnvironment, RetroAgent, RetrospectiveModel
from retro.actors import make_actor
from retro.config import ActorSection
from retro.envs import make_taskset
from retro.types import Split, Task


class Rooms:
    def __init__(self) -> None:
        self.rooms = make_taskset("household")

    def reset(self, task_id: str) -> str:
        """Start the task over; the opening observation states it."""
        self.room = self.rooms.make(Task("household", task_id, Split.TEST))
        return self.room.reset()[0]

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, object]]:
        """Act: (observation, reward, terminated, truncated, info); the rewards add up to the return, in [0, 1]."""
        return self.room.step(action)


def main(export: str) -> None:
    rooms = Rooms()
    agent = RetroAgent(
        actor=make_actor(ActorSection(model="data/quickstart/actor"), "auto"),
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
