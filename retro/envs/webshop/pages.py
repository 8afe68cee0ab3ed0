"""The text of the shop's pages, as in ReAct. What can be clicked is in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retro.envs.webshop.catalogue import Product

RESULTS_A_PAGE = 10
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
DESCRIPTION, FEATURES, REVIEWS, ATTRIBUTES = "Description", "Features", "Reviews", "Attributes"


def search_page(instruction: str) -> str:
    """The first page of a play, and the target of :data:`BACK`."""
    return f"WebShop\nInstruction:\n{instruction}\n[Search]"


def result_buttons(found: int, page: int) -> list[str]:
    """The buttons of results page ``page`` (from 1) of ``found`` products. The products' ids are clickable, too."""
    buttons = [BACK]
    if page > 1:
        buttons.append(PREVIOUS)
    if page * RESULTS_A_PAGE < found:
        buttons.append(NEXT)
    return buttons


def results_page(products: Sequence[Product], found: int, page: int) -> str:
    """Results page ``page`` (from 1) with its ``products``."""
    back, *turning = result_buttons(found, page)
    lines = [f"[{back}]", f"Page {page} (Total results: {found})", *(f"[{button}]" for button in turning)]
    lines += [f"[{product.asin}] {product.name} {product.price_tag}" for product in products]
    return "\n".join(lines)


def product_buttons(show_attributes: bool) -> list[str]:
    """The buttons of a product's page. The values of its options are clickable, too."""
    return [BACK, PREVIOUS, DESCRIPTION, FEATURES, REVIEWS, *([ATTRIBUTES] if show_attributes else []), BUY]


def product_page(product: Product, chosen: Mapping[str, str], show_attributes: bool) -> str:
    """A product's page, with ``chosen`` options in double brackets."""
    first, second, *rest = product_buttons(show_attributes)
    lines = [f"[{first}]", f"[{second}]"]
    for name, values in product.options.items():
        shown = (f"[[{value}]]" if chosen.get(name) == value else f"[{value}]" for value in values)
        lines.append(f"{name}: {''.join(shown)}")
    lines += [product.name, f"Price: {product.price_tag}", "Rating: N.A.", *(f"[{button}]" for button in rest)]
    return "\n".join(lines)


def detail_page(product: Product, button: str, characters: int) -> str:
    """The page behind :data:`DESCRIPTION` or a similar button, cut to ``characters``."""
    text = {
        DESCRIPTION: product.description,
        FEATURES: "\n".join(product.features),
        REVIEWS: "",  # no reviews were published
        ATTRIBUTES: "\n".join(product.attributes),
    }[button].strip()
    if len(text) > characters:
        text = f"{text[:characters].rstrip()} [{len(text) - characters:,} more characters]"
    return f"[{BACK}]\n[{PREVIOUS}]\n{text or f'There is nothing under {button}.'}"


def clicked_option(value: str, chosen: Mapping[str, str]) -> str:
    """The answer to a click on an option. The page stays the same, so only the change is shown."""
    listed = ", ".join(f"{name}: {chosen[name]}" for name in chosen)
    return f"You have clicked {value}.\nChosen so far: {listed}"


def bought(asin: str, score: float) -> str:
    return f"You bought {asin}.\nYour score (min 0.0, max 1.0): {score:.2f}"
