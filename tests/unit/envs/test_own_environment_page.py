"""docs/your-own-environment.md: what it shows is what works."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.extensions.guessing_game import GuessingTasks
from retro.config import load_config
from retro.envs import make_taskset
from retro.envs.gymnasium import GymnasiumTasks
from retro.envs.testing import check_environment
from retro.prompts import PromptLibrary, PromptSet
from retro.types import Split, Step

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "your-own-environment.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, where a reader would put them."""
    environment, test, corridor = _blocks("python")
    actor, reflection = _blocks("jinja")
    settings, config, of_gymnasium = _blocks("yaml")
    (tmp_path / "prompts").mkdir()
    for name, text in (
        ("guessing_game.py", environment),
        ("test_guessing_game.py", test),
        ("corridor.py", corridor),
        ("guessing.yaml", config),
        ("corridor.yaml", of_gymnasium),
        ("prompts/actor.jinja", actor),
        ("prompts/reflection.jinja", reflection),
        ("prompts/prompts.yaml", settings),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # what the working folder adds goes again
    return tmp_path


def test_the_environment_and_its_prompts_are_the_example(folder: Path) -> None:
    text = (folder / "guessing_game.py").read_text(encoding="utf-8")
    assert text == (ROOT / "examples" / "extensions" / "guessing_game.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    for path in (folder / "prompts").iterdir():
        shipped = ROOT / "examples" / "extensions" / "prompts" / path.name
        assert path.read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8"), path.name


def test_the_config_finds_the_environment_and_the_prompts(folder: Path) -> None:
    section = load_config(folder / "guessing.yaml").environment
    taskset = make_taskset(section.name, section.options)
    assert taskset.name == "guessing"
    assert PromptLibrary.from_section(section).of(taskset.name).folder == Path("prompts")


def test_the_prompts_grow_by_appending_and_read_what_the_actor_writes(folder: Path) -> None:
    prompts = PromptSet("guessing", folder / "prompts")
    tasks = GuessingTasks()
    opening = tasks.make(tasks.tasks(Split.TRAIN, 1)[0]).reset()[0]
    steps = [Step("50", "Higher.", 0.4, "The middle."), Step("75", "Lower.", 0.0, "The middle of the rest.")]
    first, second, third = (prompts.actor(opening, steps[:count], ["Begin with 60."]) for count in range(3))
    assert "- Begin with 60.\n" in first
    assert first.endswith(f"\n{opening}\nThought 1:")
    assert second.startswith(first)
    assert third.startswith(second)
    assert prompts.parse(" Between 51 and 74.\nAction 3: 60") == ("Between 51 and 74.", "60")


def test_the_check_and_the_gymnasium_environment_work(folder: Path) -> None:
    pytest.importorskip("gymnasium", reason="needs pip install 'retro[gymnasium]'")
    section: dict[str, Any] = yaml.safe_load((folder / "corridor.yaml").read_text(encoding="utf-8"))["environment"]
    taskset = make_taskset(section["name"], section["options"])
    for actions in (["left"] * 5, ["right"] * 5):
        check_environment(taskset, actions=actions)


def test_every_option_of_the_gymnasium_environment_is_in_the_table() -> None:
    table = PAGE[PAGE.index("| option |") :]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == list(inspect.signature(GymnasiumTasks).parameters)
