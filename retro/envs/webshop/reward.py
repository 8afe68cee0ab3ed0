"""WebShop's score of a purchase: type · (attributes + options + price) / (all that was asked for), in [0, 1].

The rules are upstream's ``goal.py`` (Yao et al., arXiv 2207.01206, appendix A.5), written anew. What differs is said at
:func:`title_words` (no spaCy) and :func:`colour` (our own list of colours).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from retro.envs.webshop.catalogue import Product
from retro.envs.webshop.goals import Goal
from retro.envs.webshop.search import STOP_WORDS

SAME_ABOVE = 85
"""Two texts whose token set ratio is above this mean the same."""
COLOURS = (
    "amber apricot aqua azure beige black blue bronze brown burgundy camel champagne charcoal chocolate coffee copper "
    "coral cream cyan gold gray green grey indigo ivory jade khaki lavender lilac lime magenta maroon mauve mint "
    "mustard navy nude olive orange peach pink plum purple red rose rust sand silver tan taupe teal turquoise violet "
    "walnut white wine yellow"
)
"""In alphabetical order: the first one that a value names stands for it."""
FUNCTION_WORDS = "all any from its more most only our out over per under up via you your"
"""Besides the search's stop words: no part of what a product is called."""

_COLOUR_PATTERNS = {name: re.compile(rf"(?<![a-z]){name}(?![a-z])") for name in COLOURS.split()}
_NOT_NAMING = STOP_WORDS | set(FUNCTION_WORDS.split())


@dataclass(frozen=True, slots=True)
class Score:
    """What a purchase is worth, and why."""

    type: float
    """0, 0.1, 0.5 or 1: whether it is that kind of product at all."""
    attributes: int
    """How many of the asked ones it has; ``options`` alike."""
    options: int
    price: bool
    """Whether it costs at most the limit."""
    asked: int
    """Attributes, options and the price together."""

    @property
    def total(self) -> float:
        """In [0, 1]; exactly 1 is success."""
        return self.type * ((self.attributes + self.options + self.price) / self.asked)


def score(bought: Product, options: Collection[str], goal: Goal, target: Product) -> Score:
    """The score of buying ``bought`` with the chosen ``options``, where ``goal`` was written for ``target``."""
    return Score(
        type=type_score(bought, target),
        attributes=sum(has_attribute(bought, attribute) for attribute in goal.attributes),
        options=sum(any(same_option(wanted, chosen) for chosen in options) for wanted in goal.options),
        price=goal.price_limit is None or bought.price <= goal.price_limit,
        asked=len(goal.attributes) + len(goal.options) + 1,
    )


def type_score(bought: Product, target: Product) -> float:
    """Whether two products are of one kind: by the share of ``target``'s title words, search and category."""
    wanted = title_words(target.name)
    shared = len(wanted & title_words(bought.name)) / len(wanted) if wanted else 0.2
    if shared == 0:
        return 0.0
    if shared < 0.1:
        return 0.1
    categories = _categories(bought) & _categories(target)
    return 1.0 if bought.query == target.query or len(categories) >= 2 or shared > 0.2 else 0.5


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.product_category.split("›")}


def title_words(name: str) -> set[str]:
    """The words of a title that stand for upstream's nouns: two letters or more, no digits, no function words.

    Upstream takes what spaCy tags as noun or proper noun. In titles, which are hardly sentences, that is nearly every
    word; adjectives are counted here and not there.
    """
    return {word for word in re.findall(r"[^\W\d_]{2,}", _apart_from_numbers(name.lower())) if word not in _NOT_NAMING}


def _apart_from_numbers(text: str) -> str:
    """``4k`` and ``b2b`` are no words."""
    return re.sub(r"\w*\d\w*", " ", text)


def has_attribute(product: Product, attribute: str) -> bool:
    """Whether the product is said to be so: by its attributes, nearly, or word for word in its texts."""
    if any(same(own, attribute) for own in product.attributes):
        return True
    texts = (product.name, " ".join(product.features), product.description)
    return any(attribute in text.lower() for text in texts)


def same_option(wanted: str, chosen: str) -> bool:
    """Whether two values of an option mean the same: ``wine red, large`` is the colour ``red``."""
    return same(colour(wanted), colour(chosen))


def colour(value: str) -> str:
    """The first colour of the alphabet that ``value`` names; ``value`` itself if it names none.

    Upstream also finds colours within words (``red`` in ``embroidered``); here a letter beside a colour rules it out.
    """
    return next((name for name, pattern in _COLOUR_PATTERNS.items() if name in value and pattern.search(value)), value)


def same(one: str, other: str) -> bool:
    return token_set_ratio(one, other) > SAME_ABOVE


def token_set_ratio(one: str, other: str) -> int:
    """How alike two texts are by their sets of words, 0 to 100: thefuzz's ``token_set_ratio``.

    The words that both have are compared with those and the rest of each; the best of the three comparisons counts. So
    a text whose words are all in the other one scores 100.
    """
    first, second = _tokens(one), _tokens(other)
    if not first or not second:
        return 0
    both = _joined(first & second)
    left, right = (f"{both} {_joined(rest)}".strip() for rest in (first - second, second - first))
    return max(_ratio(left, right), _ratio(both, left), _ratio(both, right))


def _tokens(text: str) -> set[str]:
    return set(re.sub(r"[\W_]", " ", text.lower()).split())


def _joined(tokens: Iterable[str]) -> str:
    return " ".join(sorted(tokens))


def _ratio(one: str, other: str) -> int:
    """Twice the longest common subsequence by both lengths, in percent; 0 if one is empty."""
    if not one or not other:
        return 0
    return round(200 * _common(one, other) / (len(one) + len(other)))


def _common(one: str, other: str) -> int:
    """The length of the longest common subsequence, a row of the table at a time as an integer's bits (Hyyrö 2004)."""
    everywhere = (1 << len(one)) - 1
    places: dict[str, int] = {}
    for place, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << place
    row = everywhere
    for character in other:
        here = row & places.get(character, 0)
        row = ((row + here) | (row - here)) & everywhere
    return len(one) - row.bit_count()
