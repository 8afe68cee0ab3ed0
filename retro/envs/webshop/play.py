"""One play of WebShop: searches and clicks from page to page, until something is bought or the steps run out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retro.envs.base import Environment, StepResult
from retro.envs.webshop.catalogue import Catalogue, Product
from retro.envs.webshop.goals import Goal
from retro.envs.webshop.pages import (
    BACK,
    BUY,
    NEXT,
    PREVIOUS,
    RESULTS_A_PAGE,
    bought,
    clicked_option,
    detail_page,
    product_buttons,
    product_page,
    result_buttons,
    results_page,
    search_page,
)
from retro.envs.webshop.reward import score

MAX_QUERY_CHARACTERS = 1000
MAX_ECHO_CHARACTERS = 100

_ACTION = re.compile(r"(?P<verb>search|click)\s*\[(?P<what>[^\n]*)\]", re.IGNORECASE)
_SECOND_ACTION = re.compile(r"\]\s*(?:search|click)\s*\[", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a play, for any task."""

    steps: int = 15
    page_characters: int = 2000
    show_attributes: bool = False


class Webshop(Environment):
    """One play of one goal."""

    def __init__(self, catalogue: Catalogue, goal: Goal, rules: Rules) -> None:
        self.goal = goal
        self._catalogue = catalogue
        self._rules = rules
        self.horizon = rules.steps
        self.reset()

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. Goal and shop depend on the task alone, so ``seed`` and ``options`` change nothing."""
        self._found: list[str] = []
        self._page = 0
        self._asin = ""
        self._detail = ""
        self._chosen: dict[str, str] = {}
        self._steps = 0
        self._score: float | None = None
        return search_page(self.goal.instruction), {"success": False}

    def step(self, action: str) -> StepResult:
        if self._over:
            return "The play is over.", 0.0, *self._ends()
        self._steps += 1
        observation = self._act(action.strip())
        return observation, self._score or 0.0, *self._ends()

    def snapshot(self) -> dict[str, Any]:
        return {
            "found": list(self._found),
            "page": self._page,
            "asin": self._asin,
            "detail": self._detail,
            "chosen": dict(self._chosen),
            "steps": self._steps,
            "score": self._score,
        }

    def restore(self, state: Any) -> None:
        self._found = list(state["found"])
        self._page = state["page"]
        self._asin = state["asin"]
        self._detail = state["detail"]
        self._chosen = dict(state["chosen"])
        self._steps = state["steps"]
        self._score = state["score"]

    @property
    def _over(self) -> bool:
        return self._score is not None or self._steps >= self.horizon

    def _ends(self) -> tuple[bool, bool, dict[str, Any]]:
        """(terminated, truncated, info)"""
        terminated = self._score is not None
        return terminated, self._over and not terminated, {"success": self._score == 1.0}

    @property
    def _product(self) -> Product:
        return self._catalogue.product(self._asin)

    def _shown(self) -> list[str]:
        """The ids on the current page of results."""
        return self._found[(self._page - 1) * RESULTS_A_PAGE : self._page * RESULTS_A_PAGE]

    def _act(self, action: str) -> str:
        match = _ACTION.fullmatch(action)
        if not match or _SECOND_ACTION.search(match["what"]):
            return self._refuse(action)
        what = match["what"].strip()
        if match["verb"].lower() == "search":
            return self._search(what) if 0 < len(what) <= MAX_QUERY_CHARACTERS else self._refuse(action)
        clicked = self._clickable().get(what.lower())
        return self._refuse(action) if clicked is None else self._click(clicked)

    def _search(self, query: str) -> str:
        self._leave_product()
        self._found = self._catalogue.search(query)
        self._page = 1
        return self._show()

    def _click(self, clicked: str) -> str:
        if clicked == BUY:
            return self._buy()
        if clicked == BACK:
            self._leave_product()
            self._found, self._page = [], 0
        elif clicked == PREVIOUS:
            self._go_back()
        elif clicked == NEXT:
            self._page += 1
        elif not self._asin:
            self._asin = clicked
        elif clicked in product_buttons(self._rules.show_attributes):
            self._detail = clicked
        else:
            return self._choose(clicked)
        return self._show()

    def _leave_product(self) -> None:
        """As in upstream, chosen options are forgotten with the product."""
        self._asin, self._detail, self._chosen = "", "", {}

    def _go_back(self) -> None:
        if self._detail:
            self._detail = ""
        elif self._asin:
            self._leave_product()
        else:
            self._page -= 1

    def _choose(self, value: str) -> str:
        names = [name for name, values in self._product.options.items() if value in values]
        name = next((name for name in names if self._chosen.get(name) != value), names[0])
        self._chosen[name] = value
        return clicked_option(value, self._chosen)

    def _buy(self) -> str:
        target = self._catalogue.product(self.goal.asin)
        self._score = score(self._product, self._chosen.values(), self.goal, target).total
        return bought(self._asin, self._score)

    def _show(self) -> str:
        if self._detail:
            return detail_page(self._product, self._detail, self._rules.page_characters)
        if self._asin:
            return product_page(self._product, self._chosen, self._rules.show_attributes)
        if self._page:
            products = [self._catalogue.product(asin) for asin in self._shown()]
            return results_page(products, len(self._found), self._page)
        return search_page(self.goal.instruction)

    def _clickable(self) -> dict[str, str]:
        """What can be clicked on the current page, by lower-case text. A button wins over an option of its name."""
        if self._detail:
            texts = [BACK, PREVIOUS]
        elif self._asin:
            values = [value for values in self._product.options.values() for value in values]
            texts = [*values, *product_buttons(self._rules.show_attributes)]
        elif self._page:
            texts = [*self._shown(), *result_buttons(len(self._found), self._page)]
        else:
            texts = []
        return {text.lower(): text for text in texts}

    def _refuse(self, action: str) -> str:
        echo = repr(action)
        if len(echo) > MAX_ECHO_CHARACTERS:
            echo = f"{echo[: MAX_ECHO_CHARACTERS - 1]}…"
        return f"Invalid action: {echo}. Allowed, one at a time: {self._allowed()}."

    def _allowed(self) -> str:
        if self._detail:
            buttons, others = [BACK, PREVIOUS], ""
        elif self._asin:
            buttons = product_buttons(self._rules.show_attributes)
            others = "a value of an option" if self._product.options else ""
        elif self._page:
            buttons = result_buttons(len(self._found), self._page)
            others = "the id of a product on this page" if self._found else ""
        else:
            buttons, others = [], ""
        clicks = [f"click[{text}]" for text in (*buttons, others) if text]
        return ", ".join(["search[words]", *clicks])
