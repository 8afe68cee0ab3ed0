"""WebShop as text: search a shop of real products, click, choose options, and buy what an instruction asks for.

The tasks, pages and scores of WebShop (Yao et al., arXiv 2207.01206; github.com/princeton-nlp/WebShop) in the text form
of ReAct, without Java, Flask and spaCy. docs/environments/webshop.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import SkipValidation

from retro.config import PositiveInt
from retro.envs.base import TaskSet, UnknownTaskError
from retro.envs.options import checked
from retro.envs.sources import existing, sources_by_split
from retro.envs.webshop.catalogue import Catalogue, Product, load_catalogue
from retro.envs.webshop.goals import Goal, Goals, Kind
from retro.envs.webshop.pages import BUY, RESULTS_A_PAGE
from retro.envs.webshop.play import Rules, Webshop
from retro.envs.webshop.reward import same_option
from retro.envs.webshop.search import words
from retro.envs.webshop.sources import REMEDY, find_files
from retro.types import Split, Task

TITLE_WORDS_TO_SEARCH = (8, 16, 64)


@dataclass(frozen=True, slots=True)
class Shop:
    """The products and goals of one source."""

    catalogue: Catalogue
    goals: Goals


class WebshopTasks(TaskSet):
    """WebShop's tasks over a catalogue of products. Nothing is read before the first task is asked for.

    Args:
        data: a folder with the published files, one file of products in it, or a Parquet file of products; one for all
            splits, or a mapping of split to source.
        instructions: ``human`` (12,087 on the full catalogue) or ``synthetic``.
        splits: by default official for published files, hashed for Parquet.
        steps: the step limit.
        page_characters: descriptions and feature lists are cut to this length.
        show_attributes: whether products have a page of their attributes, which decide the score.
        prepared: the folder for a large catalogue's index; by default the data's.

    Raises:
        ValueError: for a wrong option, missing data, or a package that is not installed.
    """

    name = "webshop"

    @checked
    def __init__(
        self,
        data: SkipValidation[str | Mapping[str, str] | None] = None,
        instructions: Kind = "human",
        splits: Literal["official", "hashed"] | None = None,
        steps: PositiveInt = 15,
        page_characters: PositiveInt = 2000,
        show_attributes: bool = False,
        prepared: str | None = None,
    ) -> None:
        if data is None:
            raise ValueError(f"webshop: data names no folder yet; {REMEDY}")
        self._source_of = sources_by_split(data, self.name)
        self._files = {
            source: find_files(existing(source, self.name, REMEDY))
            for source in dict.fromkeys(self._source_of.values())
        }
        self._kind = instructions
        self._splits = splits
        self._rules = Rules(steps, page_characters, show_attributes)
        self._prepared = None if prepared is None else Path(prepared)
        self._shops: dict[str, Shop] = {}
        self._ids: dict[Split, list[str]] = {}
        for files in self._files.values():
            if instructions == "human" and files.attributes is not None and files.human is None:
                raise ValueError(
                    f"webshop: data: {files.products.parent} has no items_human_ins.json, which human instructions "
                    f"need; {REMEDY}; or set instructions to synthetic"
                )

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        ids = self._split_ids(split)
        if offset + count > len(ids):
            raise ValueError(
                f"webshop: split {split} has {len(ids):,} tasks with {self._kind} instructions, {offset + count:,} "
                f"were asked for{self._hint(split)}"
            )
        return [self._task(goal_id, split) for goal_id in ids[offset : offset + count]]

    def count(self, split: Split) -> int:
        """The number of tasks of ``split``."""
        return len(self._split_ids(split))

    def make(self, task: Task) -> Webshop:
        shop, goal = self._find(task)
        return Webshop(shop.catalogue, goal, self._rules)

    def goal(self, task: Task) -> Goal:
        """What ``task`` asks for."""
        return self._find(task)[1]

    def product(self, task: Task) -> Product:
        """The product that ``task`` was written for."""
        shop, goal = self._find(task)
        return shop.catalogue.product(goal.asin)

    def catalogue(self, task: Task) -> Catalogue:
        """The shop that ``task`` is played in."""
        return self._find(task)[0].catalogue

    def oracle(self, task: Task) -> str:
        """Which product to buy, a search that finds it, and the options to choose."""
        shop, goal = self._find(task)
        return know_all(shop.catalogue, goal)

    def _task(self, goal_id: str, split: Split) -> Task:
        shop = self._shop(self._source_of[split])
        goal = shop.goals.goal(goal_id)
        assert goal is not None, f"{goal_id} was listed by the same goals"
        return Task(self.name, goal_id, split, shop.catalogue.product(goal.asin).category)

    def _find(self, task: Task) -> tuple[Shop, Goal]:
        """The shop that has the task, and its goal. Any source may have it; that of the task's split comes first."""
        own = self._source_of.get(task.split)
        for source in sorted(self._files, key=lambda source: source != own):
            shop = self._shop(source)
            goal = shop.goals.goal(task.id)
            if goal is not None:
                return shop, goal
        raise UnknownTaskError(
            f"webshop: no task {task.id!r} among the {self._kind} instructions of {', '.join(self._files)}; ids look "
            f"like B000000000-{self._kind}-0"
        )

    def _split_ids(self, split: Split) -> list[str]:
        if split not in self._source_of:
            raise ValueError(f"webshop: environment.options.data names no source for the split {split}")
        if split not in self._ids:
            source = self._source_of[split]
            goals = self._shop(source).goals
            sharing = [other for other in Split if self._source_of.get(other) == source]
            self._ids[split] = goals.official(split) if self._is_official(source) else goals.hashed(split, sharing)
        return self._ids[split]

    def _is_official(self, source: str) -> bool:
        if self._splits is None:
            return self._files[source].attributes is not None
        return self._splits == "official"

    def _hint(self, split: Split) -> str:
        """What to try if a split is too small."""
        hints = []
        if self._is_official(self._source_of[split]):
            hints.append("splits: hashed (the published splits are meant for the full catalogue)")
        if self._kind == "human":
            hints.append("instructions: synthetic")
        return f"; environment.options can say {' or '.join(hints)}" if hints else ""

    def _shop(self, source: str) -> Shop:
        if source not in self._shops:
            catalogue = load_catalogue(self._files[source], self._prepared)
            goals = Goals(catalogue, self._kind)
            for other, shop in self._shops.items():
                both = sorted(goals.asins & shop.goals.asins)
                if both:
                    raise ValueError(
                        f"webshop: data: {source} and {other} both have instructions for {both[0]} (and "
                        f"{len(both) - 1:,} more): sources of different splits must not share products"
                    )
            self._shops[source] = Shop(catalogue, goals)
        return self._shops[source]


def know_all(catalogue: Catalogue, goal: Goal) -> str:
    """A reflection by someone who knows the product that ``goal`` was written for."""
    product = catalogue.product(goal.asin)
    said = []
    found = finding_search(catalogue, product)
    if found is not None:
        query, page = found
        turning = "" if page == 1 else f" and turn to page {page} of the results"
        said.append(f"Use search[{query}]{turning}.")
    said.append(f"The right product is {product.asin}: click[{product.asin}].")
    clicks = [f"click[{value}]" for value in options_to_choose(product, goal)]
    if clicks:
        said.append(f"Choose its options with {', then '.join(clicks)}.")
    said.append(f"Then click[{BUY}].")
    return " ".join(said)


def finding_search(catalogue: Catalogue, product: Product) -> tuple[str, int] | None:
    """A search by title words that finds ``product``, and the page of the results; None if none finds it.

    It is the shortest search with the product on the first page, else the one with the lowest page.
    """
    best: tuple[int, str] | None = None
    title = words(product.name)
    for count in TITLE_WORDS_TO_SEARCH:
        query = " ".join(title[:count])
        results = catalogue.search(query)
        if product.asin in results:
            page = 1 + results.index(product.asin) // RESULTS_A_PAGE
            best = min(best or (page, query), (page, query), key=lambda found: found[0])
            if page == 1:
                break
    return None if best is None else (best[1], best[0])


def options_to_choose(product: Product, goal: Goal) -> list[str]:
    """For each option that ``goal`` asks for, the value of ``product`` that counts as it, if there is one.

    Equal values are preferred to similar ones, and each option of the product is used once.
    """
    free = dict(product.options)
    chosen = []
    for wanted in goal.options:
        fitting = [
            (value != wanted, name, value)
            for name, values in free.items()
            for value in values
            if same_option(wanted, value)
        ]
        if fitting:
            _, name, value = min(fitting, key=lambda fit: fit[0])
            del free[name]
            chosen.append(value)
    return chosen
