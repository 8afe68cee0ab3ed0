"""The catalogue: products by id, prices drawn once and for all, and the same shop from memory and from the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from webshop_products import BISCUITS, MUG, PRODUCTS, STEEL_MUG, WOOL_SOCKS, product, write_shop

from retro.envs.webshop import catalogue as webshop_catalogue
from retro.envs.webshop.catalogue import Catalogue, load_catalogue, search_text
from retro.envs.webshop.sources import find_files, read_rows

ASINS = [product["asin"] for product in PRODUCTS]


def load(folder: Path, prepared: Path | None = None) -> Catalogue:
    return load_catalogue(find_files(folder), prepared)


def test_products_are_found_by_id_and_by_words(tmp_path: Path) -> None:
    catalogue = load(write_shop(tmp_path))
    assert list(catalogue) == ASINS and len(catalogue) == len(ASINS) and MUG in catalogue and "B0" not in catalogue
    assert catalogue.product(MUG).options == {
        "color": ("sage green", "slate", "cream"),
        "size": ("12 ounce", "16 ounce"),
    }
    assert catalogue.product(BISCUITS).features == ("Gluten free.",)
    assert catalogue.search("double wall")[0] == STEEL_MUG
    assert catalogue.search("sage") == [MUG]  # options are searched
    assert catalogue.search("lead") == []  # features after the first are not
    with pytest.raises(KeyError):
        catalogue.product("B0")


def test_what_a_search_looks_at(tmp_path: Path) -> None:
    mug = next(read_rows(find_files(write_shop(tmp_path))))
    assert search_text(mug) == (
        "Larkfell Ceramic Travel Mug with Silicone Lid A mug for the way to work. Thrown and glazed by hand. "
        "Dishwasher safe, lid and all. color: sage green, slate, cream, and size: 12 ounce, 16 ounce"
    )


def test_a_price_range_is_drawn_once_and_for_all(tmp_path: Path) -> None:
    first = load(write_shop(tmp_path / "one")).product(WOOL_SOCKS).price
    alone = [entry for entry in PRODUCTS if entry["asin"] == WOOL_SOCKS]
    assert load(write_shop(tmp_path / "two", alone)).product(WOOL_SOCKS).price == first
    assert 22 < first < 26
    assert load(tmp_path / "one").product(MUG).price == 18.5


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source counts as a large one."""
    monkeypatch.setattr(webshop_catalogue, "SMALL_SOURCE_BYTES", 0)


def test_small_sources_leave_nothing_behind(tmp_path: Path) -> None:
    before = sorted(path.name for path in write_shop(tmp_path).iterdir())
    load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.usefixtures("large")
def test_a_prepared_shop_is_the_same_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webshop_catalogue, "BATCH_ROWS", 4)  # several record batches
    write_shop(tmp_path)
    made = load(tmp_path)
    monkeypatch.setattr(webshop_catalogue, "read_rows", None)  # what is prepared is not read again
    opened = load(tmp_path)
    monkeypatch.undo()
    in_memory = load(tmp_path)
    for catalogue in (made, opened):
        assert [catalogue.product(asin) for asin in catalogue] == [in_memory.product(asin) for asin in ASINS]
        for query in ("travel mug", "women socks", "oat", "fast charger", "nothing of the kind"):
            assert catalogue.search(query) == in_memory.search(query)


@pytest.mark.usefixtures("large")
def test_a_damaged_preparation_is_named(tmp_path: Path) -> None:
    load(write_shop(tmp_path))
    (folder,) = tmp_path.glob("retro-webshop-*")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=rf"{folder.name} is damaged .*: delete it, and it is prepared anew"):
            load(tmp_path)
        file.unlink()
        with pytest.raises(ValueError, match=rf"{folder.name} is damaged"):
            load(tmp_path)
        file.write_bytes(content)
    assert load(tmp_path).product(MUG).price == 18.5


@pytest.mark.usefixtures("large")
def test_changed_files_are_prepared_anew(tmp_path: Path) -> None:
    assert load(write_shop(tmp_path)).search("lantern") == []
    lantern = product("B0LANT0001", "Lantern", "garden", "lanterns", "Home › Lanterns", [""], None)
    write_shop(tmp_path, [*PRODUCTS, lantern])
    os.utime(tmp_path / "items_shuffle.json", (1, 1))
    assert load(tmp_path).search("lantern") == ["B0LANT0001"]
    assert len(list(tmp_path.glob("retro-webshop-*"))) == 2


@pytest.mark.usefixtures("large")
def test_another_folder_may_be_named_for_what_is_prepared(tmp_path: Path) -> None:
    load(write_shop(tmp_path / "data"), tmp_path / "index")
    assert [path.name[:13] for path in (tmp_path / "index").iterdir()] == ["retro-webshop"]
    assert not list((tmp_path / "data").glob("*retro*"))


@pytest.mark.usefixtures("large")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be written to .*file .*environment\.options\.prepared"):
        load(write_shop(tmp_path / "data"), tmp_path / "file")


@pytest.mark.usefixtures("large")
def test_a_preparation_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    write_shop(tmp_path, [*PRODUCTS, {"asin": "B0"}])
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="product 9 is not in WebShop's layout"):
        load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_empty_shop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no products"):
        load(write_shop(tmp_path, []))


def test_a_value_of_another_type_is_named(tmp_path: Path) -> None:
    write_shop(tmp_path, [{**PRODUCTS[0], "category": 3}])
    with pytest.raises(ValueError, match=r"items_shuffle\.json is not in WebShop's layout"):
        load(tmp_path)
