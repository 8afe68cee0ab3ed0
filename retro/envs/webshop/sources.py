"""WebShop's published files, read one product at a time.

There are two layouts: upstream's JSON files (``items_shuffle*.json``, ``items_ins_v2*.json``,
``items_human_ins.json``), cleaned as in upstream's ``load_products``, and one Parquet file of clean rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from retro.reading import UnreadableError, cut, parse_json, read_array, read_json

REMEDY = (
    "get items_shuffle.json and items_ins_v2.json (or items_shuffle_1000.json and items_ins_v2_1000.json) and "
    "items_human_ins.json with setup.sh of github.com/princeton-nlp/WebShop"
)
UNPRICED = 100.0
"""The price of a product without one, dollars, as in upstream."""
MAX_ASIN_CHARACTERS = 10
MAX_MAPPING_BYTES = 2**32
"""The largest ``items_ins_v2.json`` and ``items_human_ins.json``, which are read as a whole."""
MAX_COMBINATIONS = 1_000_000
"""The largest number of combinations of a product's options, each of which has a synthetic instruction."""
Row = dict[str, Any]
"""One product with the columns of ``catalogue._schema``."""

_NOT_IN_LAYOUT = (KeyError, TypeError, AttributeError, ValueError)
"""The errors of reading an entry in another layout."""


@dataclass(frozen=True, slots=True)
class SourceFiles:
    """The files of one source."""

    products: Path
    attributes: Path | None = None
    """None if the products are a Parquet file, which has everything."""
    human: Path | None = None

    @property
    def all(self) -> list[Path]:
        return [path for path in (self.products, self.attributes, self.human) if path is not None]


def find_files(source: Path) -> SourceFiles:
    """The files of ``source``: a Parquet file, a JSON file of products, or a folder with a JSON file of products.

    Raises:
        ValueError: if a file is missing, or a folder has several files of products.
    """
    if source.suffix == ".parquet":
        return SourceFiles(source)
    products = _products_in(source) if source.is_dir() else source
    suffix = products.stem.removeprefix("items_shuffle") if products.stem.startswith("items_shuffle") else ""
    attributes = [products.parent / f"items_ins_v2{end}.json" for end in dict.fromkeys((suffix, ""))]
    there = [path for path in attributes if path.is_file()]
    if not there:
        raise ValueError(f"webshop: data: {products.parent} has no {attributes[0].name}; {REMEDY}")
    human = products.parent / "items_human_ins.json"
    return SourceFiles(products, there[0], human if human.is_file() else None)


def _products_in(folder: Path) -> Path:
    found = sorted(folder.glob("items_shuffle*.json")) or [
        path for path in sorted(folder.glob("items_*.json")) if not path.stem.startswith(("items_ins", "items_human"))
    ]
    if not found:
        raise ValueError(f"webshop: data: {folder} holds no items_shuffle*.json and no items_*.json; {REMEDY}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"webshop: data: {folder} holds several files of products ({names}): name one of them")
    return found[0]


def read_rows(files: SourceFiles) -> Iterator[Row]:
    """The products of a source in its order, each id once. As in upstream, ids of over 10 characters are left out.

    Raises:
        ValueError: for a file in another layout, naming the file and the product.
    """
    seen: set[str] = set()
    for row in _read_parquet(files.products) if files.attributes is None else _read_json(files):
        asin = row["asin"]
        if asin not in seen and asin != "nan" and 0 < len(asin) <= MAX_ASIN_CHARACTERS:
            seen.add(asin)
            yield row


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    yield _row_of_parquet(record)
                    number += 1
    except (*_NOT_IN_LAYOUT, pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"webshop: data: {path} is not a table of WebShop's products: row {number}: {_reason(error)}"
        ) from error


def _row_of_parquet(record: dict[str, Any]) -> Row:
    human = [_human(entry) for entry in parse_json(record["human_instructions"] or "[]")]
    return {
        "asin": _texts([record["asin"]])[0],
        "name": _one_line(record["name"]),
        "category": record["category"],
        "query": record["query"].lower().strip(),
        "product_category": record["product_category"],
        "description": _one_line(record["full_description"]),
        "features": [_one_line(text) for text in record["bullet_points"]],
        "prices": record["pricing"] or [UNPRICED],
        "price_tag": record["price_tag"],
        "options": _options(parse_json(record["options"])),
        "attributes": record["attributes"],
        "instruction": record["instruction"],
        "instruction_attributes": record["instruction_attributes"],
        "human": json.dumps(human) if human else None,
    }


def _read_json(files: SourceFiles) -> Iterator[Row]:
    assert files.attributes is not None
    attributes = _read_mapping(files.attributes)
    human = _read_mapping(files.human) if files.human is not None else {}
    for number, record in enumerate(_read_products(files.products)):
        try:
            yield _row_of_json(record, attributes.get(record["asin"], {}), human.get(record["asin"], []))
        except _NOT_IN_LAYOUT as error:
            raise ValueError(
                f"webshop: data: {files.products}: product {number} is not in WebShop's layout "
                f"({_reason(error)}); {REMEDY}"
            ) from error


def _read_products(path: Path) -> Iterator[Any]:
    try:
        yield from read_array(path)
    except (UnreadableError, OSError) as error:
        raise ValueError(f"webshop: data: {error}; an array of products is expected: cut short? {REMEDY}") from error


def _row_of_json(record: dict[str, Any], about: dict[str, Any], human: list[dict[str, Any]]) -> Row:
    features = record["small_description"] or [""]
    prices = _prices(record.get("pricing"))
    options = {
        name.lower(): [entry["value"].strip().replace("/", " | ").lower() for entry in entries]
        for name, entries in (record["customization_options"] or {}).items()
        if entries is not None
    }
    return {
        "asin": _texts([record["asin"]])[0],
        "name": _one_line(record["name"]),
        "category": record["category"],
        "query": record["query"].lower().strip(),
        "product_category": record["product_category"] or "",
        "description": _one_line(record["full_description"]),
        "features": [_one_line(text) for text in (features if isinstance(features, list) else [features])],
        "prices": prices,
        "price_tag": " to ".join(f"${price}" for price in prices),
        "options": _options(options),
        "attributes": about.get("attributes") or [],
        "instruction": about.get("instruction"),
        "instruction_attributes": about.get("instruction_attributes") or [],
        "human": json.dumps([_human(entry) for entry in human]) if human else None,
    }


def _options(options: dict[str, list[str]]) -> str:
    """Name → values, as JSON."""
    combinations = prod(len(_texts(values)) for values in options.values())
    if combinations > MAX_COMBINATIONS:
        raise ValueError(f"its options have more than {MAX_COMBINATIONS:,} combinations")
    return json.dumps(options)


def _human(entry: dict[str, Any]) -> dict[str, Any]:
    options = entry["instruction_options"]
    instruction, attributes = entry["instruction"], entry["instruction_attributes"]
    return {
        "instruction": _texts([instruction])[0],
        "attributes": _texts(attributes),
        "options": _texts(list(options.values()) if isinstance(options, dict) else options),
    }


def _texts(values: list[str]) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"a list of texts is expected, not {cut(repr(values), 40)}")
    return values


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {cut(' '.join(str(error).split()))}"


def _prices(text: str | None) -> list[float]:
    """``$33.99 - $1,035.99`` as its first two numbers."""
    numbers = [re.sub(r"[^\d.]", "", part) for part in (text or "").split("$")[1:]]
    return [float(number) for number in numbers if re.fullmatch(r"\d+\.?\d*|\.\d+", number)][:2] or [UNPRICED]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, MAX_MAPPING_BYTES)
    except (UnreadableError, OSError) as error:
        raise ValueError(f"webshop: data: {error}; cut short? {REMEDY}") from error
    if not isinstance(value, dict):
        raise ValueError(
            f"webshop: data: {path} holds a {type(value).__name__}, not a mapping of product ids; {REMEDY}"
        )
    return value
