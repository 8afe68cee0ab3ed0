"""One play of WebShop, by hand, in a shop of invented products."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webshop_products import (
    BUY_MUG,
    MUG,
    MUG_TASK,
    OAT_CREAM,
    PRODUCTS,
    ROSE_CREAM,
    STEEL_MUG,
    lamps,
    product,
    write_shop,
)

from retro.envs.webshop import WebshopTasks
from retro.envs.webshop.play import Webshop

MUG_PAGE = """[Back to Search]
[< Prev]
color: [sage green][slate][cream]
size: [12 ounce][16 ounce]
Larkfell Ceramic Travel Mug with Silicone Lid
Price: $18.5
Rating: N.A.
[Description]
[Features]
[Reviews]
[Buy Now]"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def tasks(shop: Path) -> WebshopTasks:
    return WebshopTasks(str(shop), splits="hashed")


def play(world: Webshop, *actions: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """What the last action is answered with."""
    return [world.step(action) for action in actions][-1]


def test_a_play_from_the_opening_to_success(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    opening, info = world.reset()
    assert opening == f"WebShop\nInstruction:\n{world.goal.instruction}\n[Search]" and info == {"success": False}
    results, *_ = world.step("search[travel mug]")
    assert results.splitlines()[:3] == [
        "[Back to Search]",
        "Page 1 (Total results: 3)",
        f"[{MUG}] Larkfell Ceramic Travel Mug with Silicone Lid $18.5",
    ]
    assert world.step(f"click[{MUG}]") == (MUG_PAGE, 0.0, False, False, {"success": False})
    assert world.step("click[sage green]")[0] == "You have clicked sage green.\nChosen so far: color: sage green"
    assert world.step("click[16 ounce]")[0].endswith("Chosen so far: color: sage green, size: 16 ounce")
    answer = world.step("click[Buy Now]")
    assert answer == (
        f"You bought {MUG}.\nYour score (min 0.0, max 1.0): 1.00", 1.0, True, False, {"success": True},
    )  # fmt: skip
    assert world.step("search[more]") == ("The play is over.", 0.0, True, False, {"success": True})


def test_a_purchase_that_fits_in_part(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    observation, reward, terminated, truncated, info = play(world, "search[mug]", f"click[{MUG}]", "click[buy now]")
    assert reward == pytest.approx(2 / 4)  # the attribute and the price, of one attribute, two options and the price
    assert (terminated, truncated, info) == (True, False, {"success": False})
    assert observation.endswith("0.50")


def test_pages_under_a_product(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    features = play(world, "search[mug]", f"click[{MUG}]", "click[cream]", "click[Features]")[0]
    assert features == (
        "[Back to Search]\n[< Prev]\nDishwasher safe, lid and all.\nLead free glaze.\nKeeps a drink warm for an hour."
    )
    back = world.step("click[< Prev]")[0]
    assert back == MUG_PAGE.replace("[cream]", "[[cream]]")  # options stay while one reads
    assert world.step("click[Description]")[0].endswith("A mug for the way to work. Thrown and glazed by hand.")
    assert play(world, "click[< Prev]", "click[Reviews]")[0].endswith("There is nothing under Reviews.")
    assert world.step("click[Attributes]")[0].startswith("Invalid action")


def test_attributes_are_shown_where_the_options_say_so(shop: Path) -> None:
    world = WebshopTasks(str(shop), show_attributes=True).make(MUG_TASK)
    assert "[Attributes]" in play(world, "search[mug]", f"click[{MUG}]")[0]
    assert world.step("click[attributes]")[0].endswith("dishwasher safe\nlead free")


def test_long_pages_are_cut(shop: Path) -> None:
    world = WebshopTasks(str(shop), page_characters=17).make(MUG_TASK)
    assert play(world, "search[mug]", f"click[{MUG}]", "click[Description]")[0] == (
        "[Back to Search]\n[< Prev]\nA mug for the way [36 more characters]"
    )


def test_leaving_a_product_forgets_its_options(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    results, *_ = world.step("search[mug]")
    assert play(world, f"click[{MUG}]", "click[slate]", "click[< Prev]")[0] == results
    assert world.step(f"click[{MUG}]")[0] == MUG_PAGE
    world.step("click[slate]")
    assert world.step("click[Back to Search]")[0] == world.reset()[0]


def test_an_option_is_chosen_anew_and_whatever_its_case(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    clicked = play(world, "Search[mug]", f"CLICK[{MUG.lower()}]", "click[Slate]", "click [ sage green ]")[0]
    assert clicked == "You have clicked sage green.\nChosen so far: color: sage green"


def test_a_value_of_two_options_is_clicked_twice(tmp_path: Path) -> None:
    twins = product(
        "B0TWIN0001", "Twin Lamp", "garden", "lamps", "Lamps", [""], "$5", {"Left": ["on"], "Right": ["on"]}
    )
    write_shop(tmp_path, [*PRODUCTS, twins])
    world = WebshopTasks(str(tmp_path), splits="hashed").make(MUG_TASK)
    clicked = play(world, "search[lamp]", "click[B0TWIN0001]", "click[on]", "click[on]")[0]
    assert clicked.endswith("Chosen so far: left: on, right: on")


@pytest.mark.parametrize(("count", "sizes"), [(12, [10, 2]), (10, [10]), (60, [10] * 5)])
def test_results_come_ten_a_page_and_fifty_at_most(tmp_path: Path, count: int, sizes: list[int]) -> None:
    world = WebshopTasks(str(lamps(tmp_path, count)), splits="hashed").make(MUG_TASK)
    page, *_ = world.step("search[lamp]")
    pages = [page]
    while "[Next >]" in page:
        page, *_ = world.step("click[Next >]")
        pages.append(page)
    assert [sum(line.startswith("[B0LAMP") for line in text.splitlines()) for text in pages] == sizes
    assert [("[< Prev]" in text) for text in pages] == [False] + [True] * (len(sizes) - 1)
    assert pages[-1].splitlines()[1] == f"Page {len(sizes)} (Total results: {min(count, 50)})"
    assert world.step("click[Next >]")[0].startswith("Invalid action")
    if len(pages) > 1:
        assert world.step("click[< Prev]")[0] == pages[-2]


def test_a_product_of_another_page_cannot_be_clicked(tmp_path: Path) -> None:
    world = WebshopTasks(str(lamps(tmp_path, 12)), splits="hashed").make(MUG_TASK)
    first, *_ = world.step("search[lamp]")
    second, *_ = world.step("click[Next >]")
    ids = [line[1:11] for line in first.splitlines() if line.startswith("[B0LAMP")]
    assert world.step(f"click[{ids[0]}]")[0].startswith("Invalid action")
    shown = next(line[1:11] for line in second.splitlines() if line.startswith("[B0LAMP"))
    assert "Price: $5.0" in world.step(f"click[{shown}]")[0]
    assert world.step("click[< Prev]")[0] == second


def test_a_search_without_results_says_so(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    assert world.step("search[zeppelin]")[0] == "[Back to Search]\nPage 1 (Total results: 0)"
    assert "product" not in world.step("what now?")[0]


@pytest.mark.parametrize(
    "action",
    [
        "",
        "look",
        "search[]",
        "search[ ]",
        "click[]",
        "click[Search]",
        "click[Buy Now]",
        f"click[{MUG}]",
        "search[mug] click[Buy Now]",
        "search[mug]\nclick[Buy Now]",
        "search[mug",
        "I want to search[mug]",
        f"search[{'mug ' * 2500}]",
        "\x00\x07",
        "🛒" * 5000,
    ],
)
def test_invalid_actions_say_what_is_allowed(tasks: WebshopTasks, action: str) -> None:
    world = tasks.make(MUG_TASK)
    observation, *rest = world.step(action)
    assert rest == [0.0, False, False, {"success": False}]
    echo, _, allowed = observation.partition(" Allowed, one at a time: ")
    assert allowed == "search[words]."
    assert len(echo) <= len("Invalid action: .") + 100
    assert world.snapshot() == {**tasks.make(MUG_TASK).snapshot(), "steps": 1}


def test_what_is_allowed_depends_on_the_page(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    assert play(world, "search[mug]", "buy")[0].endswith(
        "search[words], click[Back to Search], click[the id of a product on this page]."
    )
    assert play(world, f"click[{MUG}]", "buy")[0].endswith("click[Buy Now], click[a value of an option].")
    assert play(world, "click[Reviews]", "buy")[0].endswith("search[words], click[Back to Search], click[< Prev].")


def test_a_search_is_possible_on_every_page(tasks: WebshopTasks) -> None:
    world = tasks.make(MUG_TASK)
    expected = world.step("search[cream]")[0]
    for before in (
        (),
        ("search[mug]",),
        ("search[mug]", f"click[{MUG}]"),
        ("search[mug]", f"click[{MUG}]", "click[Reviews]"),
    ):
        world.reset()
        assert play(world, *before, "search[cream]")[0] == expected


def test_the_steps_run_out(shop: Path) -> None:
    world = WebshopTasks(str(shop), steps=3).make(MUG_TASK)
    ends = [world.step(action)[2:4] for action in ("nonsense", "search[mug]", f"click[{MUG}]")]
    assert ends == [(False, False), (False, False), (False, True)]
    assert world.step("click[Buy Now]") == ("The play is over.", 0.0, False, True, {"success": False})


def test_buying_with_the_last_step_is_no_running_out(shop: Path) -> None:
    world = WebshopTasks(str(shop), steps=5).make(MUG_TASK)
    assert play(world, *BUY_MUG)[1:] == (1.0, True, False, {"success": True})


ACTIONS = st.sampled_from(
    [
        *BUY_MUG,
        *(f"click[{asin}]" for asin in (ROSE_CREAM, OAT_CREAM, STEEL_MUG)),
        *("search[cream]", "click[2 ounce]", "click[Features]"),
        *("click[< Prev]", "click[Back to Search]", "click[Next >]", "nonsense"),
    ]
)


@given(before=st.lists(ACTIONS, max_size=8), after=st.lists(ACTIONS, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_snapshot_goes_on_as_the_play_did(tasks: WebshopTasks, before: list[str], after: list[str]) -> None:
    world = tasks.make(MUG_TASK)
    rewards = [world.step(action)[1] for action in before]
    state = json.loads(json.dumps(world.snapshot()))
    expected = [world.step(action) for action in after]
    other = tasks.make(MUG_TASK)
    other.restore(state)
    assert [other.step(action) for action in after] == expected
    assert 0 <= sum(rewards) + sum(answer[1] for answer in expected) <= 1
