"""WebShop's score of a purchase: type · (attributes + options + price) / (all that was asked for), in [0, 1].

The rules are those of upstream's ``goal.py`` (Yao et al., arXiv 2207.01206, appendix A.5). :func:`title_words` (no
spaCy) and :func:`colour` (our own list of colours) differ.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from retro.envs.webshop.catalogue import Product
from retro.envs.webshop.goals import Goal
from retro.envs.webshop.search import STOP_WORDS

SAME_ABOVE = 85
"""Two texts with a higher token set ratio mean the same."""
COLOURS = (
    "amber apricot aqua azure beige black blue bronze brown burgundy camel champagne charcoal chocolate coffee copper "
    "coral cream cyan gold gray green grey indigo ivory jade khaki lavender lilac lime magenta maroon mauve mint "
    "mustard navy nude olive orange peach pink plum purple red rose rust sand silver tan taupe teal turquoise violet "
    "walnut white wine yellow"
)
"""In alphabetical order; a value stands for the first colour that it names."""
FUNCTION_WORDS = "all any from its more most only our out over per under up via you your"
"""Further words, beside the search's stop words, that do not name a product."""

_COLOUR_PATTERNS = {name: re.compile(rf"(?<![a-z]){name}(?![a-z])") for name in COLOURS.split()}
_NOT_NAMING = STOP_WORDS | set(FUNCTION_WORDS.split())


@dataclass(frozen=True, slots=True)
class Score:
    """The parts of a purchase's score."""

    type: float
    """0, 0.1, 0.5 or 1: whether it is that kind of product at all."""
    attributes: int
    """How many of the attributes that were asked for it has; ``options`` likewise."""
    options: int
    price: bool
    """Whether it costs at most the limit."""
    asked: int
    """The number of attributes and options that were asked for, plus 1 for the price."""

    @property
    def total(self) -> float:
        """The score in [0, 1]; exactly 1 is success."""
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
    """Whether two products are of one kind, by the shared words of ``target``'s title, the search, and the category."""
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
    """The words of a title in place of upstream's nouns: two letters or more, without digits and function words.

    Upstream uses what spaCy tags as a noun or proper noun. In titles, which are hardly sentences, that is nearly every
    word; adjectives count here and not there.
    """
    return {word for word in re.findall(r"[^\W\d_]{2,}", _apart_from_numbers(name.lower())) if word not in _NOT_NAMING}


def _apart_from_numbers(text: str) -> str:
    """The text without words such as ``4k`` and ``b2b``."""
    return re.sub(r"\w*\d\w*", " ", text)


def has_attribute(product: Product, attribute: str) -> bool:
    """Whether the product has an attribute: a similar one in its list, or the same words in its texts."""
    if any(same(own, attribute) for own in product.attributes):
        return True
    texts = (product.name, " ".join(product.features), product.description)
    return any(attribute in text.lower() for text in texts)


def same_option(wanted: str, chosen: str) -> bool:
    """Whether two values of an option mean the same: ``wine red, large`` is the colour ``red``."""
    return same(colour(wanted), colour(chosen))


def colour(value: str) -> str:
    """The alphabetically first colour that ``value`` names; ``value`` itself if it names none.

    Upstream also finds colours within words (``red`` in ``embroidered``); here they must be separate words.
    """
    return next((name for name, pattern in _COLOUR_PATTERNS.items() if name in value and pattern.search(value)), value)


def same(one: str, other: str) -> bool:
    return token_set_ratio(one, other) > SAME_ABOVE


def token_set_ratio(one: str, other: str) -> int:
    """How similar two texts are by their sets of words, 0 to 100: thefuzz's ``token_set_ratio``.

    Three texts are compared: the shared words, and the shared words with the rest of either text. The best ratio
    counts, so a text whose words are all in the other one scores 100.
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
    """Twice the longest common subsequence divided by the sum of lengths, in percent; 0 if one is empty."""
    if not one or not other:
        return 0
    return round(200 * _common(one, other) / (len(one) + len(other)))


def _common(one: str, other: str) -> int:
    """The length of the longest common subsequence; each row of its table is one integer's bits (Hyyrö 2004)."""
    ones = (1 << len(one)) - 1
    positions: dict[str, int] = {}
    for index, character in enumerate(one):
        positions[character] = positions.get(character, 0) | 1 << index
    row = ones
    for character in other:
        here = row & positions.get(character, 0)
        row = ((row + here) | (row - here)) & ones
    return len(one) - row.bit_count()
