"""WebShop's goals: what an instruction asks for, and the splits into training, validation and test.

People wrote the ``human`` instructions; ``synthetic`` ones are made from a product's attributes and one choice of each
option. Goals are shuffled as upstream shuffles them. So on the full catalogue, the test set (the first 500) and the
validation set (the next 1,000) are those of the paper (Yao et al., arXiv 2207.01206).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from retro.envs.sources import split_of
from retro.envs.webshop.catalogue import Catalogue, Product
from retro.types import Split, derive_seed

Kind = Literal["human", "synthetic"]
OFFICIAL = {Split.TEST: slice(0, 500), Split.VALIDATION: slice(500, 1500), Split.TRAIN: slice(1500, None)}
SHUFFLE_SEED = 233
"""Upstream's."""
PRICE_LIMITS = tuple(10.0 * tens for tens in range(1, 100))
"""The price limits of instructions, dollars. An instruction names one of the next four above the price."""

_ID = re.compile(r"(?P<asin>.+)-(?P<kind>human|synthetic)-(?P<number>0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Goal:
    """What to buy."""

    id: str
    asin: str
    """The product that the instruction was written for. Any other product that fits is as good."""
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    price_limit: float | None
    """Dollars; None for no limit."""


class Goals:
    """All goals of one kind over a catalogue."""

    def __init__(self, catalogue: Catalogue, kind: Kind) -> None:
        self.kind = kind
        self._catalogue = catalogue
        self._asins: list[str] = []
        self._numbers: list[int] = []
        for asin, numbers in _human(catalogue) if kind == "human" else _synthetic(catalogue):
            self._asins.extend([asin] * len(numbers))
            self._numbers.extend(numbers)
        self._order = list(range(len(self._asins)))
        random.Random(SHUFFLE_SEED).shuffle(self._order)

    def __len__(self) -> int:
        return len(self._asins)

    @property
    def asins(self) -> set[str]:
        """The products with goals."""
        return set(self._asins)

    def official(self, split: Split) -> list[str]:
        """The ids of a published split."""
        return [self._id(row) for row in self._order[OFFICIAL[split]]]

    def hashed(self, split: Split, among: Sequence[Split]) -> list[str]:
        """The ids in ``split``, one of the splits ``among`` that share the goals. A product's goals stay together."""
        asins = dict.fromkeys(self._asins)
        own = {asin for asin in asins if split_of(asin, "webshop", among) is split}
        return [self._id(row) for row in self._order if self._asins[row] in own]

    def goal(self, goal_id: str) -> Goal | None:
        """The goal with this id; None if there is none."""
        match = _ID.fullmatch(goal_id)
        if not match or match["kind"] != self.kind or match["asin"] not in self._catalogue:
            return None
        product, number = self._catalogue.product(match["asin"]), int(match["number"])
        return _human_goal(product, number) if self.kind == "human" else _synthetic_goal(product, number)

    def _id(self, row: int) -> str:
        return f"{self._asins[row]}-{self.kind}-{self._numbers[row]}"


def _human(catalogue: Catalogue) -> Iterator[tuple[str, list[int]]]:
    """As in upstream, instructions without attributes are left out."""
    for asin, human in zip(catalogue, catalogue.column("human"), strict=True):
        if human:
            yield asin, [number for number, entry in enumerate(json.loads(human)) if entry["attributes"]]


def _synthetic(catalogue: Catalogue) -> Iterator[tuple[str, range]]:
    columns = (catalogue.column(name) for name in ("instruction", "instruction_attributes", "options"))
    for asin, instruction, attributes, options in zip(catalogue, *columns, strict=True):
        if instruction and attributes:
            yield asin, range(prod(len(values) for values in json.loads(options).values()))


def _human_goal(product: Product, number: int) -> Goal | None:
    if number >= len(product.human) or not product.human[number]["attributes"]:
        return None
    entry = product.human[number]
    limit = _price_limit(product, "human", number)
    return Goal(
        id=f"{product.asin}-human-{number}",
        asin=product.asin,
        instruction=entry["instruction"].strip(".") + _limit_text(limit),
        attributes=tuple(entry["attributes"]),
        options=tuple(entry["options"]),
        price_limit=limit,
    )


def _synthetic_goal(product: Product, number: int) -> Goal | None:
    if not product.instruction or not product.instruction_attributes:
        return None
    names = sorted(product.options)
    if number >= prod(len(product.options[name]) for name in names):
        return None
    chosen = _combination([product.options[name] for name in names], number)
    wanted = ", and ".join(f"{name}: {value}" for name, value in zip(names, chosen, strict=True))
    limit = _price_limit(product, "synthetic")
    return Goal(
        id=f"{product.asin}-synthetic-{number}",
        asin=product.asin,
        instruction=product.instruction + (f" with {wanted}" if wanted else "") + _limit_text(limit),
        attributes=product.instruction_attributes,
        options=chosen,
        price_limit=limit,
    )


def _combination(values: Sequence[Sequence[str]], number: int) -> tuple[str, ...]:
    """The ``number``-th of ``itertools.product(*values)``, where the last value changes fastest."""
    chosen = []
    for choices in reversed(values):
        number, choice = divmod(number, len(choices))
        chosen.append(choices[choice])
    return tuple(reversed(chosen))


def _price_limit(product: Product, *key: str | int) -> float | None:
    """The higher of two draws among the next four limits. Upstream draws without a seed; here the id is the seed."""
    above = [limit for limit in PRICE_LIMITS if limit > product.price][:4]
    if len(above) < 2:
        return None
    return max(random.Random(derive_seed("webshop", "price limit", product.asin, *key)).sample(above, 2))


def _limit_text(limit: float | None) -> str:
    return "" if limit is None else f", and price lower than {limit:.2f} dollars"
