"""WebShop's products by id, their prices, and the search over them.

A small source is read into memory. A large one (the full catalogue has 1.18 million products) is prepared once: an
Arrow file and a search index are written beside the data, and later loads map these into memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from retro.envs.webshop.search import SearchIndex
from retro.envs.webshop.sources import Row, SourceFiles, read_rows
from retro.types import derive_seed

RESULTS = 50
"""The largest number of products that a search finds."""
SMALL_SOURCE_BYTES = 64 * 2**20
"""A source up to this size is read at every load, and nothing is written."""
PRODUCTS_IN_MEMORY = 4096
BATCH_ROWS = 4096
_FORMAT = 1
"""Increased when the prepared files change, so that older ones are not used any more."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Product:
    """One product of the shop."""

    asin: str
    """The id, at most 10 characters."""
    name: str
    category: str
    """One of five: beauty, electronics, fashion, garden, grocery."""
    query: str
    """The search that found the product when the shop was scraped."""
    product_category: str
    """A path: ``Home & Kitchen › Furniture › …``."""
    description: str
    features: tuple[str, ...]
    price: float
    """Dollars. If the shop gives a range, the price is drawn from it, seeded by the id."""
    price_tag: str
    options: Mapping[str, tuple[str, ...]]
    """Name → values, from which a buyer chooses one."""
    attributes: tuple[str, ...]
    """Properties such as ``easy clean``, which instructions ask for. They are shown only if the rules say so."""
    instruction: str | None
    """A synthetic instruction without options and price; None if there is none."""
    instruction_attributes: tuple[str, ...]
    human: tuple[Mapping[str, Any], ...]
    """Instructions that people wrote: ``instruction``, ``attributes``, ``options``."""


_TEXT_COLUMNS = (
    *("asin", "name", "category", "query", "product_category", "description", "price_tag"),
    *("options", "instruction", "human"),
)
_LIST_COLUMNS = ("features", "attributes", "instruction_attributes")


def _schema() -> Any:
    import pyarrow

    text, prices = pyarrow.string(), pyarrow.list_(pyarrow.float64())
    texts = dict.fromkeys(_LIST_COLUMNS, pyarrow.list_(text))
    return pyarrow.schema(dict.fromkeys(_TEXT_COLUMNS, text) | texts | {"prices": prices})


class Catalogue:
    """The products of one source, numbered by rows in the source's order."""

    def __init__(self, batches: Sequence[Any], index: SearchIndex) -> None:
        """``batches`` are Arrow record batches of one length (the last may be shorter); ``index`` numbers rows."""
        self._batches = batches
        self._batch_rows = batches[0].num_rows
        self._index = index
        self._asins = [asin for batch in batches for asin in batch.column("asin").to_pylist()]
        self._rows = {asin: row for row, asin in enumerate(self._asins)}
        self._product = lru_cache(maxsize=PRODUCTS_IN_MEMORY)(self._read_product)

    def __len__(self) -> int:
        return len(self._asins)

    def __contains__(self, asin: str) -> bool:
        return asin in self._rows

    def __iter__(self) -> Iterator[str]:
        """All ids, in the source's order."""
        return iter(self._asins)

    def column(self, name: str) -> Iterator[Any]:
        """One stored value for each product."""
        for batch in self._batches:
            yield from batch.column(name).to_pylist()

    def product(self, asin: str) -> Product:
        """The product with this id (``KeyError`` if there is none)."""
        return self._product(self._rows[asin])

    def search(self, query: str) -> list[str]:
        """The ids of the products that fit ``query`` best, at most 50."""
        return [self._asins[row] for row in self._index.best(query, RESULTS)]

    def _read_product(self, number: int) -> Product:
        batch, row = divmod(number, self._batch_rows)
        return _product(self._batches[batch].slice(row, 1).to_pylist()[0])


def _product(row: Row) -> Product:
    lowest, highest = row["prices"][0], row["prices"][-1]
    draw = random.Random(derive_seed("webshop", "price", row["asin"]))
    return Product(
        asin=row["asin"],
        name=row["name"],
        category=row["category"],
        query=row["query"],
        product_category=row["product_category"],
        description=row["description"],
        features=tuple(row["features"]),
        price=draw.uniform(lowest, highest),
        price_tag=row["price_tag"],
        options={name: tuple(values) for name, values in json.loads(row["options"]).items()},
        attributes=tuple(row["attributes"]),
        instruction=row["instruction"],
        instruction_attributes=tuple(row["instruction_attributes"]),
        human=tuple(json.loads(row["human"] or "[]")),
    )


def search_text(row: Row) -> str:
    """The text that a search uses: title, description, first feature and options, as upstream indexes them."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in json.loads(row["options"]).items())
    return " ".join((row["name"], row["description"], row["features"][0] if row["features"] else "", options))


def load_catalogue(files: SourceFiles, prepared: Path | None = None) -> Catalogue:
    """The products of ``files``. A large source is prepared at its first load.

    Args:
        prepared: the folder for the prepared files; by default the data's own.

    Raises:
        ValueError: for files in another layout, or a folder that cannot be written.
    """
    if sum(path.stat().st_size for path in files.all) <= SMALL_SOURCE_BYTES:
        return _read(files)
    folder = (prepared or files.products.parent) / f"retro-webshop-{_digest(files)}"
    if not folder.is_dir():
        _prepare(files, folder)
    return _open(folder)


def _read(files: SourceFiles) -> Catalogue:
    batches: list[Any] = []

    def texts() -> Iterator[str]:
        for batch, rows in _batches(files):
            batches.append(batch)
            yield from map(search_text, rows)

    index = SearchIndex.build(texts())
    return Catalogue(batches, index)


def _batches(files: SourceFiles) -> Iterator[tuple[Any, list[Row]]]:
    import pyarrow

    schema, rows = _schema(), read_rows(files)
    some = False
    while batch := list(islice(rows, BATCH_ROWS)):
        try:
            yield pyarrow.RecordBatch.from_pylist(batch, schema=schema), batch
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise ValueError(f"webshop: data: {files.products} is not in WebShop's layout: {error}") from error
        some = True
    if not some:
        raise ValueError(f"webshop: data: {files.products} holds no products")


def _digest(files: SourceFiles) -> str:
    """A digest of the files' names, sizes and times of change; hashing gigabytes of content would be slow."""
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files.all]
    return hashlib.blake2b(json.dumps([_FORMAT, facts]).encode(), digest_size=8).hexdigest()


def _prepare(files: SourceFiles, folder: Path) -> None:
    """Write the Arrow file and the index of ``files`` to ``folder``, completely or not at all."""
    import pyarrow

    logger.info("webshop: preparing %s for the first time; this takes minutes", files.products)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ValueError(
            f"webshop: the index of {files.products} cannot be written to {folder.parent} ({error.strerror}); name "
            "another folder as environment.options.prepared"
        ) from error
    try:
        with (
            pyarrow.OSFile(str(unfinished / "products.arrow"), "wb") as sink,
            pyarrow.ipc.new_file(sink, _schema()) as writer,
        ):

            def texts() -> Iterator[str]:
                for batch, rows in _batches(files):
                    writer.write_batch(batch)
                    yield from map(search_text, rows)

            index = SearchIndex.build(texts())
        index.save(unfinished / "index")
        _publish(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, folder: Path) -> None:
    os.chmod(unfinished, 0o755)  # mkdtemp's folders are private
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process has written the same files
            raise


def _open(folder: Path) -> Catalogue:
    import pyarrow

    try:
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / "products.arrow")))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return Catalogue(batches, SearchIndex.load(folder / "index"))
    except (OSError, ValueError, LookupError, TypeError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"webshop: {folder} is damaged ({' '.join(str(error).split())}): delete it, and it is prepared anew"
        ) from error
