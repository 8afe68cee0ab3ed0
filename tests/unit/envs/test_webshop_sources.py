"""The published files: what is read of them, and what is said of files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from webshop_products import COTTON_SOCKS, MUG, OAT_CREAM, PRODUCTS, WOOL_SOCKS, write_shop

from retro.envs.webshop.sources import find_files, read_rows

MANY_OPTIONS = {"customization_options": {name: [{"value": str(n)} for n in range(99)] for name in "abcd"}}
NOTHING_ASKED: dict[str, Any] = {"instruction_attributes": [], "instruction_options": []}


def rows(source: Path) -> dict[str, dict[str, Any]]:
    return {row["asin"]: row for row in read_rows(find_files(source))}


def test_the_published_layout_is_cleaned_as_upstream_cleans_it(tmp_path: Path) -> None:
    read = rows(write_shop(tmp_path))
    assert list(read) == [product["asin"] for product in PRODUCTS]
    mug = read[MUG]
    assert mug["description"] == "A mug for the way to work. Thrown and glazed by hand."
    assert json.loads(mug["options"]) == {"color": ["sage green", "slate", "cream"], "size": ["12 ounce", "16 ounce"]}
    assert (mug["prices"], mug["price_tag"]) == ([18.5], "$18.5")
    assert (mug["attributes"], mug["instruction_attributes"]) == (["dishwasher safe", "lead free"], ["dishwasher safe"])
    assert json.loads(read[OAT_CREAM]["options"]) == {"size": ["2 ounce", "4 ounce | pack of 1"]}
    assert json.loads(mug["human"])[1]["options"] == ["sage green", "16 ounce"]
    assert (read[WOOL_SOCKS]["prices"], read[WOOL_SOCKS]["price_tag"]) == ([22.0, 26.0], "$22.0 to $26.0")
    assert (read[COTTON_SOCKS]["prices"], read[COTTON_SOCKS]["price_tag"]) == ([100.0], "$100.0")
    assert read[COTTON_SOCKS]["human"] is None and read[COTTON_SOCKS]["instruction"] is None


@pytest.mark.parametrize(
    ("text", "prices"),
    [("$5", [5.0]), ("$1,234.50", [1234.5]), ("$1 - $2 - $3", [1.0, 2.0]), ("free", [100.0]), ("$", [100.0])],
)
def test_prices_are_read_from_text(tmp_path: Path, text: str, prices: list[float]) -> None:
    write_shop(tmp_path, [{**PRODUCTS[0], "pricing": text}])
    assert rows(tmp_path)[MUG]["prices"] == prices


def test_repeated_and_overlong_ids_are_left_out(tmp_path: Path) -> None:
    again = {**PRODUCTS[1], "asin": MUG}
    write_shop(tmp_path, [PRODUCTS[0], again, {**PRODUCTS[2], "asin": "B" * 11}, {**PRODUCTS[2], "asin": "nan"}])
    read = rows(tmp_path)
    assert list(read) == [MUG] and read[MUG]["name"] == PRODUCTS[0]["name"]


def test_lone_features_and_options_without_values_are_understood(tmp_path: Path) -> None:
    odd = {**PRODUCTS[0], "small_description": "one feature", "customization_options": {"Color": None}}
    write_shop(tmp_path, [odd])
    assert rows(tmp_path)[MUG]["features"] == ["one feature"]
    assert json.loads(rows(tmp_path)[MUG]["options"]) == {}


def test_a_small_set_brings_its_own_attributes(tmp_path: Path) -> None:
    write_shop(tmp_path)
    (tmp_path / "items_shuffle_1000.json").write_text(json.dumps(PRODUCTS[:2]), encoding="utf-8")
    own = {MUG: {"attributes": ["of the small set"]}}
    (tmp_path / "items_ins_v2_1000.json").write_text(json.dumps(own), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"several files of products \(items_shuffle\.json, items_shuffle_1000\.json\)"
    ):
        find_files(tmp_path)
    assert rows(tmp_path / "items_shuffle_1000.json")[MUG]["attributes"] == ["of the small set"]
    assert rows(tmp_path / "items_shuffle.json")[MUG]["attributes"] == ["dishwasher safe", "lead free"]


def parquet_row(**changes: Any) -> dict[str, Any]:
    return {
        "asin": "B0LAMP0001",
        "name": "Lamp  of paper",
        "category": "garden",
        "query": " Lamps ",
        "product_category": "Home › Lamps",
        "full_description": "A lamp.",
        "bullet_points": ["Bright."],
        "pricing": [3.0, 4.0],
        "price_tag": "$3.0 to $4.0",
        "options": json.dumps({"color": ["white"]}),
        "attributes": ["energy saving"],
        "instruction": "Find me an energy saving lamp",
        "instruction_attributes": ["energy saving"],
        "human_instructions": json.dumps(
            [{"instruction": "a lamp", "instruction_attributes": ["bright"], "instruction_options": {"color": "white"}}]
        ),
        **changes,
    }


def test_a_parquet_file_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([parquet_row()]), tmp_path / "products.parquet")
    lamp = rows(tmp_path / "products.parquet")["B0LAMP0001"]
    assert (lamp["name"], lamp["query"], lamp["prices"]) == ("Lamp of paper", "lamps", [3.0, 4.0])
    assert json.loads(lamp["human"]) == [{"instruction": "a lamp", "attributes": ["bright"], "options": ["white"]}]


@pytest.mark.parametrize("content", ["no parquet", None])
def test_another_parquet_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "products.parquet"
    if content is None:
        pq.write_table(pa.Table.from_pylist([{"asin": "B0LAMP0001"}]), path)
    else:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"products\.parquet is not a table of WebShop's products"):
        rows(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"options": "{"}, "not JSON"),
        ({"options": "[1]"}, "AttributeError"),
        ({"options": '{"color": "white"}'}, "a list of texts is expected"),
        ({"human_instructions": "[" * 100_000}, "nested deeper"),
        ({"human_instructions": "[1]"}, "TypeError"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    table = pa.Table.from_pylist([parquet_row(), parquet_row() | change])
    pq.write_table(table, tmp_path / "products.parquet")
    with pytest.raises(ValueError, match=rf"products\.parquet is not a table .*: row 1: .*{says}"):
        rows(tmp_path / "products.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items_shuffle.json", "{}", "items_shuffle.json: entry 0: not a JSON array; an array of products is expected"),
        ("items_shuffle.json", '[{"asin": "B0"', "entry 0 is not JSON .*cut short"),
        ("items_shuffle.json", "", "entry 0: not a JSON array"),
        ("items_shuffle.json", "[" * 100_000, "entry 0: nested deeper than 100 levels"),
        ("items_shuffle.json", '[{"asin": ' + "9" * 5_000, "entry 0: 9+…: an integer beyond 64 bits"),
        (
            "items_shuffle.json",
            json.dumps([PRODUCTS[0] | {"asin": 5}]),
            "product 0 .*a list of texts is expected, not .5",
        ),
        ("items_shuffle.json", json.dumps([PRODUCTS[0] | MANY_OPTIONS]), "more than 1,000,000 combinations"),
        ("items_ins_v2.json", "[" * 100_000, "items_ins_v2.json: nested deeper"),
        (
            "items_human_ins.json",
            json.dumps({MUG: [{"instruction": 5, **NOTHING_ASKED}]}),
            "a list of texts is expected",
        ),
        ("items_shuffle.json", '[{"asin": "B0"}]', "product 0 is not in WebShop's layout .*'small_description'"),
        ("items_shuffle.json", "[3]", "product 0 is not in WebShop's layout"),
        ("items_ins_v2.json", "{", "items_ins_v2.json: not JSON"),
        ("items_human_ins.json", "[]", "holds a list, not a mapping"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (write_shop(tmp_path) / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        rows(tmp_path)


def test_missing_files_are_named_with_where_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no items_shuffle.*setup\.sh of github\.com/princeton-nlp/WebShop"):
        find_files(tmp_path)
    write_shop(tmp_path)
    (tmp_path / "items_ins_v2.json").unlink()
    with pytest.raises(ValueError, match=r"has no items_ins_v2\.json"):
        find_files(tmp_path)
