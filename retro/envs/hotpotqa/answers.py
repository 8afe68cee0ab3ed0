"""Exact match and F1 of words of an answer, as in HotPotQA's ``hotpot_evaluate_v1.py``."""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})


def normalised(text: str) -> str:
    """``text`` in lower case, without ASCII punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether both are equal after normalisation."""
    return normalised(answer) == normalised(gold)


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall of the normalised words, in [0, 1].

    If either is yes, no or noanswer, the score is 0 unless they are equal.
    """
    ours, theirs = normalised(answer), normalised(gold)
    if ours != theirs and not _ALL_OR_NOTHING.isdisjoint((ours, theirs)):
        return 0.0
    our_words, their_words = ours.split(), theirs.split()
    shared = sum((Counter(our_words) & Counter(their_words)).values())
    return 2 * shared / (len(our_words) + len(their_words)) if shared else 0.0
