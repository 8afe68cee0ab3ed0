"""``retro env``: what environments there are, and one of them played by hand in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

env_app = typer.Typer(
    help="List the environments, or play a task by hand.", no_args_is_help=True, rich_markup_mode=None
)


@env_app.command("list")
def list_environments() -> None:
    """List the environments, with the first task of each split.

    \b
    Example:
      retro env list
    """
    from retro.envs import ENVIRONMENTS, make_taskset
    from retro.types import Split

    for name in ENVIRONMENTS:
        taskset = make_taskset(name)
        print(name)
        for split in Split:
            task = taskset.tasks(split, 1)[0]
            print(f"  {split.value:<10}  first task {task.id} ({task.kind})")


@env_app.command()
def play(
    environment: Annotated[str, typer.Argument(help="The environment, for example household.")],
    task_id: Annotated[str | None, typer.Option("--task", help="A task id; the first test task without it.")] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Print the reflection of one who knows the task.")] = False,
) -> None:
    """Play a task yourself: type actions, an empty line ends the episode.

    \b
    Example:
      retro env play household
    """
    from retro.envs import make_taskset
    from retro.types import Split, Task

    taskset = make_taskset(environment)
    task = taskset.tasks(Split.TEST, 1)[0] if task_id is None else Task(environment, task_id, Split.TEST)
    world = taskset.make(task)
    observation, _ = world.reset()
    if oracle:
        print(f"[{taskset.oracle(task)}]")
    print(observation)
    return_, done, success = 0.0, False, False
    while not done:
        try:
            action = input("> ").strip()
        except EOFError:
            break
        if not action:
            break
        observation, reward, terminated, truncated, info = world.step(action)
        return_, done, success = return_ + reward, terminated or truncated, bool(info["success"])
        print(observation)
    print(f"return {return_:.2f}, {'success' if success else 'no success'}")
