"""``retro env``: lists the environments, or lets a user play a task in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from retro.envs.base import Environment, TaskSet
    from retro.types import Task

env_app = typer.Typer(
    help="List the environments, or play a task by hand.", no_args_is_help=True, rich_markup_mode=None
)


@env_app.command("list")
def list_environments() -> None:
    """List the environments: what each is, and what it still needs.

    \b
    Example:
      retro env list
    """
    from retro.cli.kinds import needs
    from retro.envs import ENVIRONMENTS

    for name, registered in ENVIRONMENTS.items():
        print(f"{name}: {registered.summary}")
        if not registered.missing:
            print("    installed")
        for need in needs(registered):
            print(f"    {need}")


@env_app.command()
def play(
    environment: Annotated[
        str, typer.Argument(metavar="ENV", help="One of `retro env list`, or module:ClassName of your own task set.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key.sub=value]", help="Values that replace the config's.")
    ] = None,
    task_id: Annotated[str | None, typer.Option("--task", help="A task id; the first test task without it.")] = None,
    config: Annotated[str | None, typer.Option(help="A config whose environment.options are taken.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", metavar="KEY=VALUE", help="An option of the environment, as YAML.")
    ] = None,
    oracle: Annotated[bool, typer.Option("--oracle", help="Print the reflection of one who knows the task.")] = False,
) -> None:
    """Play a task yourself.

    Type an action at each prompt. A line with only ? prints the task again, an empty line ends the play.

    \b
    Examples:
      retro env play household
      retro env play household --task test-7 --oracle -o places=8
      retro env play household --config configs/quickstart.yaml environment.options.slack=5
    """
    from retro.envs import make_taskset

    taskset = make_taskset(environment, _options(environment, config, overrides or [], option or []))
    try:
        task = _task(taskset, task_id)
        world = taskset.make(task)
        try:
            if oracle:
                print(f"[{taskset.oracle(task) or 'this environment has no oracle'}]")
            _play(world, f"task {task.id}" + (f" ({task.kind})" if task.kind else ""))
        finally:
            world.close()
    finally:
        taskset.close()


def _options(environment: str, config: str | None, overrides: list[str], given: list[str]) -> dict[str, Any]:
    """The environment's options: the config's, with the options of ``-o`` on top."""
    from retro.config import ConfigError, load_config
    from retro.reading import UnreadableError, cut, parse_yaml

    options: dict[str, Any] = {}
    if config is not None:
        section = load_config(config, overrides).environment
        if section.name != environment:
            raise ConfigError(f"config {config}: its environment is {section.name}, not {environment}")
        options |= section.options
    elif overrides:
        raise ConfigError(f"{overrides[0]}: replaces a config's value: give --config, or an option as -o key=value")
    for entry in given:
        key, equals, text = entry.partition("=")
        if not equals or not key:
            raise ConfigError(f"-o {entry}: write it as -o key=value")
        try:
            options[key] = parse_yaml(text)
        except UnreadableError as error:
            raise ConfigError(f"-o {cut(entry)}: the value is {error}") from None
    return options


def _task(taskset: TaskSet, task_id: str | None) -> Task:
    from retro.config import ConfigError
    from retro.types import Split, Task

    if task_id is not None:
        return Task(taskset.name, task_id, Split.TEST)
    reasons = []
    for split in reversed(Split):
        try:
            return taskset.tasks(split, 1)[0]
        except ValueError as error:
            reasons.append(str(error))
    raise ConfigError(f"{taskset.name}: none of its splits has a task ({'; '.join(dict.fromkeys(reasons))})")


def _play(world: Environment, title: str) -> None:
    from retro.envs.base import EnvironmentFailedError

    returned, success = 0.0, False
    try:
        opening, _ = world.reset()
        print(f"{title}\n{opening}")
        steps, over = 0, False
        while not over:
            action = input(_prompt(world, steps + 1)).strip()
            if action == "?":
                print(opening)
                continue
            if not action:
                break
            observation, reward, terminated, truncated, info = world.step(action)
            steps, over, success = steps + 1, terminated or truncated, bool(info["success"])
            returned += reward
            print(observation if reward == 0 else f"{observation}\n[reward {reward:+.2f}]")
            if truncated and not terminated:
                print("the step limit is reached")
    except (EOFError, KeyboardInterrupt):
        print()
    except EnvironmentFailedError as error:
        print(f"the environment failed: {error}")
        raise typer.Exit(1) from None
    print(f"return {returned:.2f}, {'success' if success else 'no success'}")


def _prompt(world: Environment, step: int) -> str:
    """The number of the step, with the limit if the environment has one."""
    horizon = getattr(world, "horizon", None)
    return f"{step}/{horizon}> " if isinstance(horizon, int) else f"{step}> "
