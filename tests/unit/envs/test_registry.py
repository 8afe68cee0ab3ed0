"""Environments by name: each keeps the protocol, and what is wrong with a name or an option is said."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from retro.config import ConfigError, EnvironmentSection
from retro.envs import ENVIRONMENTS, deciding_options, make_taskset, played_environments
from retro.envs.base import UnknownTaskError
from retro.envs.mixture import MixtureTasks
from retro.envs.testing import check_environment
from retro.prompts import load_prompts
from retro.types import Split, Task


def test_the_household_keeps_the_contract() -> None:
    check_environment(make_taskset("household"))


@pytest.mark.parametrize("name", sorted(set(ENVIRONMENTS) - {"gymnasium", "mixture", "openenv", "verifiers"}))
def test_every_environment_with_words_of_its_own_has_prompts(name: str) -> None:
    assert load_prompts(name).actor("the opening", (), ())


@pytest.mark.parametrize("name", sorted(ENVIRONMENTS))
def test_every_target_is_there_or_its_package_is_named(name: str) -> None:
    """The target is imported; without options most task sets refuse, and say what they need."""
    if ENVIRONMENTS[name].missing:
        with pytest.raises(ConfigError, match=rf"pip install 'retro\[{name}\]'"):
            make_taskset(name)
    elif name in ("household", "scienceworld", "textworld-express"):
        assert make_taskset(name).name == name
    else:
        with pytest.raises(ConfigError, match=rf"environment\.options of {name}: "):
            make_taskset(name)


def test_an_environment_of_ones_own_is_a_module_and_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rooms.py").write_text(
        "from retro.envs.household import HouseholdTasks\n\nclass Rooms(HouseholdTasks):\n    name = 'rooms'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    taskset = make_taskset("rooms:Rooms", {"places": 5})
    assert taskset.tasks(Split.TEST, 1)[0].environment == "rooms"
    with pytest.raises(ConfigError, match="has no 'Halls'"):
        make_taskset("rooms:Halls")
    with pytest.raises(ConfigError, match="there is no module 'halls'"):
        make_taskset("halls:Halls")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("json:JSONDecoder", {}, "'json:JSONDecoder' is not a task set"),
        ("retro.envs.household:Household", {}, "is not a task set"),
        ("household", {"plces": 5}, r"options of household: plces: no such option; there are: places, "),
        ("mixture", {}, "options of mixture: environments: required, and not given"),
        ("gymnasium", {"actions": ["left"]}, "options of gymnasium: id: required, and not given"),
    ],
)
def test_a_wrong_class_and_wrong_options_are_named_in_a_users_words(
    name: str, options: dict[str, Any], said: str
) -> None:
    if name == "gymnasium" and ENVIRONMENTS[name].missing:
        pytest.skip("gymnasium is not installed")
    with pytest.raises(ConfigError, match=said):
        make_taskset(name, options)


BOTH = [{"name": "household"}, {"name": "rooms:Rooms", "options": {"places": 5}}]


@pytest.fixture
def mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MixtureTasks:
    (tmp_path / "rooms.py").write_text(
        """
from retro.envs.household import HouseholdTasks
from retro.types import Task

class Rooms(HouseholdTasks):
    name = "rooms"

    def tasks(self, split, count, offset=0):
        if offset + count > 3:
            raise ValueError("rooms: 3 tasks")
        found = super().tasks(split, count, offset)
        return [Task("rooms", f"room-{task.id}", split, task.kind) for task in found]

    def world(self, task):
        return super().world(Task(task.environment, task.id.removeprefix("room-"), task.split))
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rooms", raising=False)
    taskset = make_taskset("mixture", {"environments": BOTH})
    assert isinstance(taskset, MixtureTasks)
    return taskset


def test_a_mixture_takes_turns_until_one_is_spent(mixture: MixtureTasks) -> None:
    assert mixture.environments == ("household", "rooms")
    found = mixture.tasks(Split.TEST, 8)
    assert [task.environment for task in found] == [*("household", "rooms") * 3, "household", "household"]
    assert mixture.tasks(Split.TEST, 3, offset=5) == found[5:]
    opening, _ = mixture.make(found[1]).reset()
    assert opening == make_taskset("household", {"places": 5}).make(Task("household", "test-0", Split.TEST)).reset()[0]
    assert mixture.oracle(found[0]) == make_taskset("household").oracle(found[0])


def test_a_mixture_keeps_the_contract(mixture: MixtureTasks) -> None:
    check_environment(mixture)


def test_a_mixture_of_few_says_how_many_there_are() -> None:
    taskset = make_taskset("mixture", {"environments": [{"name": "household"}]})
    with pytest.raises(ValueError, match="mixture: split test has 1000000 tasks, 9000000 were asked for"):
        taskset.tasks(Split.TEST, 9_000_000)


def test_a_mixture_waits_in_threads_for_the_tasks_of_those_that_block(mixture: MixtureTasks) -> None:
    household, rooms = mixture.tasks(Split.TEST, 2)
    sys.modules["rooms"].Rooms.blocking = True
    waiting = make_taskset("mixture", {"environments": BOTH})
    assert waiting.blocking
    assert (waiting.blocks(household), waiting.blocks(rooms)) == (False, True)
    assert not mixture.blocking
    with pytest.raises(UnknownTaskError, match="'other'"):
        waiting.blocks(Task("other", "x", Split.TEST))


def test_one_of_ones_own_may_not_take_the_name_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flats.py").write_text(
        "from retro.envs.household import HouseholdTasks\nclass Flats(HouseholdTasks): pass\n"
        "class Huts(HouseholdTasks):\n    name = 'huts'\nclass Sheds(Huts): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'flats:Flats': its name is 'household'"):
        make_taskset("flats:Flats")
    names = ("household", "flats:Huts", "flats:Sheds")
    with pytest.raises(ConfigError, match="two of its environments are called 'huts'"):
        make_taskset("mixture", {"environments": [{"name": name} for name in names]})


@pytest.mark.parametrize("name", [name for name, registered in ENVIRONMENTS.items() if registered.speed])
def test_options_of_speed_are_options_and_decide_nothing(name: str) -> None:
    module, _, target = ENVIRONMENTS[name].target.partition(":")
    made = inspect.signature(getattr(importlib.import_module(module), target))
    assert set(ENVIRONMENTS[name].speed) < set(made.parameters)
    options = {"steps": 7} | dict.fromkeys(ENVIRONMENTS[name].speed, 3)
    assert deciding_options(name, options) == {"steps": 7}
    entries = [{"name": name, "options": options}, {"name": "household"}, "wrong"]
    assert deciding_options("mixture", {"environments": entries}) == {
        "environments": [{"name": name, "options": {"steps": 7}}, {"name": "household"}, "wrong"]
    }
    assert deciding_options("mine:Tasks", options) == options


def test_what_a_config_plays_is_known_before_it_is_made() -> None:
    section = EnvironmentSection(name="mixture", options={"environments": BOTH})
    assert played_environments(section) == ["household", "rooms:Rooms"]
    assert played_environments(EnvironmentSection()) == ["household"]


@pytest.mark.parametrize(
    ("environments", "says"),
    [
        ([], "must be a list"),
        ([{"options": {}}], "must have a name"),
        ([{"name": "household"}, {"name": "household"}], "each once"),
        ([{"name": "mixture"}], "none of them a mixture"),
    ],
)
def test_a_mixture_of_nothing_is_a_mistake(environments: list[dict[str, Any]], says: str) -> None:
    options = {"environments": environments}
    with pytest.raises(ConfigError, match=says):
        make_taskset("mixture", options)
    with pytest.raises(ConfigError, match=says):
        played_environments(EnvironmentSection(name="mixture", options=options))


def test_options_reach_the_environment() -> None:
    task = make_taskset("household").tasks(Split.TRAIN, 1)[0]
    small, large = (make_taskset("household", {"places": places}).make(task).reset()[0] for places in (4, 12))
    assert len(small.splitlines()[0]) < len(large.splitlines()[0])


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("hosehold", {}, r"'hosehold' is not known; did you mean 'household'\? there are: .*mixture"),
        ("household", {"palces": 3}, r"environment\.options of household: .*palces"),
        (
            "household",
            {"places": 3},
            r"environment\.options of household: places: Input should be greater than or equal to 4",
        ),
        ("household", {"places": "many"}, r"places: Input should be a valid integer"),
        ("household", {"slack": [2]}, r"slack: Input should be a valid integer"),
        ("webshop", {"data": {"train": 5}}, r"data: name a file or a folder, or one for each"),
        ("webshop", {"data": [5]}, r"data: name a file or a folder, or one for each"),
        ("webshop", {"data": "a" * 5_000}, r"data: a+…: File name too long"),
    ],
)
def test_a_mistake_is_named(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        make_taskset(name, options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3_000
