"""``retro env``: what there is and what it lacks, and a play by hand, however it ends."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retro.cli import main
from retro.config.points import Kind
from retro.envs import ENVIRONMENTS
from retro.envs.household import HouseholdTasks
from retro.types import Split, Task

OWN = """
from examples.extensions.guessing_game import Guessing, GuessingTasks
from retro.envs.base import EnvironmentFailedError

class Told(Guessing):
    def step(self, action):
        if action == "interrupt":
            raise KeyboardInterrupt
        if action == "fail":
            raise EnvironmentFailedError("the worker is gone")
        return super().step(action)
    def close(self):
        print("play closed")

class OwnTasks(GuessingTasks):
    def __init__(self, horizon=5, splits=("train", "validation", "test")):
        super().__init__(horizon)
        self.splits = splits
    def tasks(self, split, count, offset=0):
        if split not in self.splits:
            raise ValueError(f"own: no split {split}")
        return super().tasks(split, count, offset)
    def make(self, task):
        play = super().make(task)
        return Told(play.secret, play.horizon)
    def oracle(self, task):
        return None
    def close(self):
        print("tasks closed")
"""
CLOSED = ["play closed", "tasks closed"]

Retro = Callable[..., tuple[int, str, str]]


@pytest.fixture
def retro(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Retro:
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["retro", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task set of one's own, which tells when it is closed."""
    (tmp_path / "own_guessing.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_guessing:OwnTasks"


def _script(task: Task) -> str:
    """The lines that win a task of kind `pick`."""
    world = HouseholdTasks().world(task)
    thing, place = world.targets[0], world.place_of(world.targets[0])
    lines = (f"go {place}", f"open {place}", f"take {thing} from {place}")
    return "\n".join((*lines, f"go {world.goal}", f"open {world.goal}", f"put {thing} in {world.goal}")) + "\n"


def test_every_environment_is_listed_with_what_it_is_and_needs(retro: Retro, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Kind("nowhere:Tasks", "a castle", extra="castle", packages=("castle_engine",), data="walls.json")
    monkeypatch.setitem(ENVIRONMENTS, "castle", absent)
    code, out, err = retro("env", "list")
    assert code == 0, err
    lines = out.splitlines()
    for name, registered in ENVIRONMENTS.items():
        assert f"{name}: {registered.summary}" in lines
    assert lines[lines.index("household: " + ENVIRONMENTS["household"].summary) + 1] == "    installed"
    assert lines[-3:] == [
        "castle: a castle",
        "    not installed (castle_engine): pip install 'retro[castle]'",
        "    data: walls.json",
    ]


def test_a_play_that_wins(retro: Retro) -> None:
    task = next(task for task in HouseholdTasks().tasks(Split.TEST, 50) if task.kind == "pick")
    code, out, err = retro("env", "play", "household", "--task", task.id, "-o", "slack=4", stdin=_script(task))
    assert code == 0, err
    assert out.startswith(f"task {task.id}\nplaces: ")
    assert out.count("[reward +0.50]") == 2
    assert out.endswith("return 1.00, success\n")


def test_the_task_is_printed_again_and_steps_are_counted(retro: Retro, own: str) -> None:
    code, out, err = retro("env", "play", own, "-o", "horizon=3", stdin="?\nzzqx\n?\n1\n2\n")
    assert code == 0, err
    assert out.count("Guess a number from 1 to 100 in 3 guesses.") == 3
    assert [prompt in out for prompt in ("1/3> ", "2/3> ", "3/3> ", "4/3> ")] == [True, True, True, False]
    assert "the step limit is reached" in out
    assert out.splitlines()[-2:] == CLOSED


@pytest.mark.parametrize("stdin", ["1\n\n", "1\n", "1\ninterrupt\n"], ids=["empty line", "end of file", "interrupt"])
def test_a_play_can_be_left_at_any_time(retro: Retro, own: str, stdin: str) -> None:
    code, out, err = retro("env", "play", own, "--oracle", stdin=stdin)
    assert code == 0, err
    assert out.startswith("[this environment has no oracle]\ntask test-0\n")
    assert out.splitlines()[-3].endswith(", no success")
    assert out.splitlines()[-2:] == CLOSED


def test_an_environment_that_breaks_is_told(retro: Retro, own: str) -> None:
    code, out, err = retro("env", "play", own, stdin="fail\n")
    assert code == 1
    assert out.splitlines()[-3:] == ["1/5> the environment failed: the worker is gone", *CLOSED]
    assert "Traceback" not in err


def test_the_first_split_with_tasks_is_played(retro: Retro, own: str) -> None:
    assert "task train-0\n" in retro("env", "play", own, "-o", "splits=[train]")[1]
    code, out, err = retro("env", "play", own, "-o", "splits=[]")
    assert (code, out) == (2, "tasks closed\n")
    assert "guessing: none of its splits has a task (" in err  # and why, in the environment's own words


def test_options_come_from_a_config_its_overrides_and_the_command(retro: Retro, tmp_path: Path, own: str) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"environment: {{name: '{own}', options: {{horizon: 7}}}}\n", encoding="utf-8")
    play = ("env", "play", own, "--config", str(config))
    assert "in 7 guesses" in retro(*play)[1]
    assert "in 8 guesses" in retro(*play, "environment.options.horizon=8")[1]
    assert "in 9 guesses" in retro(*play, "environment.options.horizon=8", "-o", "horizon=9")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["household", "places=5"], "places=5: replaces a config's value: give --config, or an option as -o key=value"),
        (["household", "-o", "places"], "-o places: write it as -o key=value"),
        (["household", "-o", "places=[5"], "-o places=[5: the value is not YAML"),
        (["household", "-o", "palces=5"], "environment.options of household: "),
        (["household", "--task", "attic-1"], "no task 'attic-1'"),
        (["gymnasium", "--config", "quickstart.yaml"], "its environment is household, not gymnasium"),
        (["household", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_is_told(
    retro: Retro, arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quickstart.yaml").write_text("environment: {name: household}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, _, err = retro("env", "play", *arguments)
    assert code == 2
    assert says in err
    assert "Traceback" not in err


def test_the_example_of_the_docs_keeps_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, "examples/extensions/guessing_game.py"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "guessing keeps the contract\n"), done.stderr
