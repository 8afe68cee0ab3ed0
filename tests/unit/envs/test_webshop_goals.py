"""Goals: instructions of both kinds, ids that rebuild them, price limits drawn once, published and hashed splits."""

from __future__ import annotations

import random
from itertools import product as combinations
from pathlib import Path

import pytest
from webshop_products import CHARGER, MUG, OAT_CREAM, PRODUCTS, WOOL_SOCKS, human, write_shop

from retro.envs.webshop.catalogue import load_catalogue
from retro.envs.webshop.goals import SHUFFLE_SEED, Goals
from retro.envs.webshop.sources import find_files
from retro.types import Split


def goals(folder: Path, kind: str) -> Goals:
    return Goals(load_catalogue(find_files(folder)), kind)


def every_id(made: Goals) -> list[str]:
    return made.hashed(Split.TRAIN, [Split.TRAIN])


def test_human_goals_are_those_with_an_attribute(tmp_path: Path) -> None:
    made = goals(write_shop(tmp_path), "human")
    assert sorted(every_id(made)) == [f"{OAT_CREAM}-human-0", f"{MUG}-human-1", f"{CHARGER}-human-0"]
    assert made.asins == {MUG, OAT_CREAM, CHARGER} and len(made) == 3
    goal = made.goal(f"{MUG}-human-1")
    assert goal is not None and goal.id == f"{MUG}-human-1" and goal.asin == MUG
    assert goal.attributes == ("dishwasher safe",) and goal.options == ("sage green", "16 ounce")
    assert goal.price_limit in (30.0, 40.0, 50.0)  # the higher of two of 20, 30, 40, 50
    assert goal.instruction == (
        "i want a dishwasher safe travel mug in sage green that holds 16 ounces, and price lower than "
        f"{goal.price_limit:.2f} dollars"
    )


def test_nothing_is_said_about_the_price_where_no_limits_are_left(tmp_path: Path) -> None:
    goal = goals(write_shop(tmp_path), "human").goal(f"{CHARGER}-human-0")
    assert goal is not None and goal.price_limit is None
    assert goal.instruction == "find a fast charging wall charger"


def test_synthetic_goals_are_all_choices_of_the_options(tmp_path: Path) -> None:
    made = goals(write_shop(tmp_path), "synthetic")
    assert len(made) == 6 + 4 + 1
    of_socks = [made.goal(f"{WOOL_SOCKS}-synthetic-{number}") for number in range(5)]
    assert of_socks[4] is None
    chosen = [goal.options for goal in of_socks if goal is not None]
    assert chosen == list(combinations(["navy blue", "red"], ["small", "large"]))  # names sorted: color, size
    last = of_socks[3]
    assert last is not None and last.attributes == ("machine wash",)
    assert last.instruction == (
        "Find me machine wash women's socks with color: red, and size: large, and price lower than "
        f"{last.price_limit:.2f} dollars"
    )
    assert len({goal.price_limit for goal in of_socks if goal is not None}) == 1
    charger = made.goal(f"{CHARGER}-synthetic-0")
    assert charger is not None and charger.instruction == "Find me a fast charging wall charger"


@pytest.mark.parametrize(
    "goal_id",
    [
        "",
        MUG,
        f"{MUG}-human",
        f"{MUG}-human-0",  # asks for no attribute
        f"{MUG}-human-2",
        f"{MUG}-human-01",
        f"{MUG}-human--1",
        f"{MUG}-human-{'9' * 30}",
        f"{MUG}-synthetic-0",
        "B0-human-0",
        f"{PRODUCTS[1]['asin']}-human-0",
        f"{MUG}-human-1\n",
    ],
)
def test_other_ids_are_no_goals(tmp_path: Path, goal_id: str) -> None:
    assert goals(write_shop(tmp_path), "human").goal(goal_id) is None


def many(folder: Path, count: int) -> Path:
    """A shop of ``count`` products, each with one human instruction, in a published layout."""
    asins = [f"B0{number:08d}" for number in range(count)]
    products = [{**PRODUCTS[0], "asin": asin} for asin in asins]
    return write_shop(folder, products, {asin: [human("a mug", ["dishwasher safe"], [])] for asin in asins})


def test_published_splits_are_upstreams_shuffle_cut_at_500_and_1500(tmp_path: Path) -> None:
    made = goals(many(tmp_path, 1600), "human")
    shuffled = [f"B0{number:08d}-human-0" for number in range(1600)]
    random.seed(SHUFFLE_SEED)  # as upstream does it
    random.shuffle(shuffled)
    assert made.official(Split.TEST) == shuffled[:500]
    assert made.official(Split.VALIDATION) == shuffled[500:1500]
    assert made.official(Split.TRAIN) == shuffled[1500:]


def test_hashed_splits_share_goals_by_product_and_in_the_shuffled_order(tmp_path: Path) -> None:
    made = goals(many(tmp_path, 400), "human")
    parts = {split: made.hashed(split, list(Split)) for split in Split}
    assert sorted(goal_id for ids in parts.values() for goal_id in ids) == sorted(every_id(made))
    assert len(parts[Split.TRAIN]) > 250 and min(map(len, parts.values())) > 15
    order = {goal_id: place for place, goal_id in enumerate(every_id(made))}
    for ids in parts.values():
        assert [order[goal_id] for goal_id in ids] == sorted(order[goal_id] for goal_id in ids)


def test_all_goals_of_a_product_are_in_one_hashed_split(tmp_path: Path) -> None:
    made = goals(write_shop(tmp_path), "synthetic")
    for asin, count in ((MUG, 6), (WOOL_SOCKS, 4)):
        found = [sum(goal_id.startswith(asin) for goal_id in made.hashed(split, list(Split))) for split in Split]
        assert sorted(found) == [0, 0, count]
