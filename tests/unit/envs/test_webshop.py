"""WebShop's task set: tasks, splits, sources, options, the oracle, and a knowing buyer on the real products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from webshop_products import (
    BUY_MUG,
    CHARGER,
    CREAM_TASK,
    MUG,
    MUG_TASK,
    OAT_CREAM,
    PRODUCTS,
    lamps,
    product,
    write_shop,
)

from benchmarks.webshop import buy
from retro.config import ConfigError
from retro.envs import make_taskset
from retro.envs.base import UnknownTaskError
from retro.envs.testing import check_environment
from retro.envs.webshop import WebshopTasks, finding_search, options_to_choose
from retro.types import Split, Task


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def tasks(shop: Path) -> WebshopTasks:
    return WebshopTasks(str(shop), splits="hashed")


def test_the_contract_is_kept(shop: Path, tmp_path: Path) -> None:
    check_environment(WebshopTasks(str(shop), splits="hashed"), MUG_TASK, BUY_MUG)
    check_environment(WebshopTasks(str(lamps(tmp_path, 60)), splits="hashed"))


def test_tasks_are_rebuilt_from_their_ids(tasks: WebshopTasks, shop: Path) -> None:
    listed = [task for split in Split for task in tasks.tasks(split, tasks.count(split))]
    assert sorted(task.id for task in listed) == [f"{OAT_CREAM}-human-0", f"{MUG}-human-1", f"{CHARGER}-human-0"]
    assert {task.kind for task in listed} == {"garden", "beauty", "electronics"}
    other = WebshopTasks(str(shop), splits="hashed")
    for task in listed:
        moved = Task(task.environment, task.id, Split.TEST)
        assert other.make(moved).reset() == tasks.make(task).reset()


def test_unknown_ids_are_named(tasks: WebshopTasks) -> None:
    with pytest.raises(UnknownTaskError, match=r"no task 'B0-human-0' .*ids look like B000000000-human-0"):
        tasks.make(Task("webshop", "B0-human-0", Split.TRAIN))


def test_more_tasks_than_there_are_say_how_many_there_are(shop: Path) -> None:
    official = WebshopTasks(str(shop))
    assert len(official.tasks(Split.TEST, 3)) == 3  # the first 500 are the test set
    with pytest.raises(
        ValueError, match=r"train has 0 tasks with human instructions, 1 were asked for; .*splits: hashed"
    ):
        official.tasks(Split.TRAIN, 1)
    with pytest.raises(ValueError, match=r"test has 3 tasks .* 5 were asked for.*instructions: synthetic"):
        official.tasks(Split.TEST, 2, offset=3)


def test_each_split_may_have_its_own_source(shop: Path, tmp_path: Path) -> None:
    mixed = WebshopTasks({"train": str(shop), "test": str(lamps(tmp_path, 60, shop=[]))}, splits="hashed")
    assert mixed.count(Split.TRAIN) == 3 and mixed.count(Split.TEST) == 60
    lamp = mixed.tasks(Split.TEST, 1)[0]
    assert "Lamp" in mixed.make(lamp).step("search[lamp]")[0]
    assert mixed.make(Task("webshop", lamp.id, Split.TRAIN)).goal == mixed.goal(lamp)  # its id is enough
    with pytest.raises(ValueError, match="no source for the split validation"):
        mixed.tasks(Split.VALIDATION, 1)


def test_sources_with_the_same_products_are_refused(shop: Path, tmp_path: Path) -> None:
    mixed = WebshopTasks({"train": str(shop), "test": str(write_shop(tmp_path))}, splits="hashed")
    mixed.tasks(Split.TRAIN, 1)
    with pytest.raises(ValueError, match=f"both have instructions for {OAT_CREAM} \\(and 2 more\\)"):
        mixed.tasks(Split.TEST, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, r"names no folder yet; get items_shuffle\.json"),
        ({"data": "/nowhere/at/all"}, r"there is no /nowhere/at/all; get items_shuffle\.json"),
        ({"data": {"training": "x"}}, "'training' is not a split"),
        ({"instructions": "robot"}, "instructions: Input should be 'human' or 'synthetic'"),
        ({"splits": "random"}, "splits: Input should be 'official' or 'hashed'"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"steps": True}, "steps: Input should be a valid integer"),
        ({"page_characters": "2000"}, "page_characters: Input should be a valid integer"),
        ({"show_attributes": 1}, "show_attributes: Input should be a valid boolean"),
        ({"prepared": 3}, "prepared: Input should be a valid string"),
        ({"step": 3}, "step"),
    ],
)
def test_wrong_options_are_named(shop: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_taskset("webshop", {"data": str(shop), **options})


def test_human_instructions_need_their_file(tmp_path: Path) -> None:
    (write_shop(tmp_path) / "items_human_ins.json").unlink()
    with pytest.raises(ValueError, match=r"no items_human_ins\.json.*instructions to synthetic"):
        WebshopTasks(str(tmp_path))
    assert WebshopTasks(str(tmp_path), instructions="synthetic").count(Split.TEST) == 11


def test_the_oracle_says_what_wins(tasks: WebshopTasks) -> None:
    assert tasks.oracle(CREAM_TASK) == (
        f"Use search[brackwater face cream for sensitive skin oat]. The right product is {OAT_CREAM}: "
        f"click[{OAT_CREAM}]. Choose its options with click[4 ounce | pack of 1]. Then click[Buy Now]."
    )
    for task in (MUG_TASK, CREAM_TASK):
        assert buy(tasks, task)[0] == 1.0


def test_the_oracle_names_the_page_of_a_product_that_is_hard_to_find(tmp_path: Path) -> None:
    shop = WebshopTasks(str(lamps(tmp_path / "many", 30))).catalogue(MUG_TASK)
    assert finding_search(shop, shop.product("B0LAMP0029")) == ("lamp 29", 1)
    same = [product(f"B0LAMP{n:04d}", "Lamp", "garden", "lamps", "Lamps", [""], "$5") for n in range(60)]
    shop = WebshopTasks(str(write_shop(tmp_path / "same", [*PRODUCTS, *same]))).catalogue(MUG_TASK)
    assert finding_search(shop, shop.product("B0LAMP0011")) == ("lamp", 2)
    assert finding_search(shop, shop.product("B0LAMP0055")) is None


def test_each_option_is_chosen_once_and_equal_values_first(tasks: WebshopTasks) -> None:
    mug, goal = tasks.product(MUG_TASK), tasks.goal(MUG_TASK)
    assert options_to_choose(mug, goal) == ["sage green", "16 ounce"]
    assert options_to_choose(tasks.product(CREAM_TASK), goal) == []


def real_shop(shared_data: Path, instructions: str) -> WebshopTasks:
    path = shared_data / "webshop" / "products_1000.parquet"
    if not path.is_file():
        pytest.skip(f"no products at {path}")
    return WebshopTasks(str(path), instructions)


def test_a_knowing_buyer_scores_nearly_one_on_real_products(shared_data: Path) -> None:
    shop = real_shop(shared_data, "synthetic")
    assert sum(shop.count(split) for split in Split) == 6910  # as upstream counts them
    returns = [buy(shop, task)[0] for split in Split for task in shop.tasks(split, 200)]
    assert sum(returns) / len(returns) >= 0.97


def test_a_knowing_buyer_follows_human_instructions_too(shared_data: Path) -> None:
    shop = real_shop(shared_data, "human")
    tasks = [task for split in Split for task in shop.tasks(split, shop.count(split))]
    assert len(tasks) == 13
    returns = [buy(shop, task)[0] for task in tasks]
    assert sum(returns) / len(returns) >= 0.97


def test_the_contract_is_kept_with_real_products(shared_data: Path) -> None:
    shop = real_shop(shared_data, "synthetic")
    task = shop.tasks(Split.TEST, 1)[0]
    check_environment(shop, task, [f"search[{shop.goal(task).instruction}]", "click[Next >]", "click[< Prev]"])
