"""Prompts that grow: of a text that begins as an earlier one did, only the new lines are tokenised.

That is exact where a newline cuts a text into pieces that are tokenised each by itself, whatever stands before and
behind it. It does so for word-level tokenizers whose words cannot extend over a newline (:func:`cuts_at_newlines`). Of
all others, and of chat templates, the whole text is tokenised.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from retro.models.text import encode_prompt
from retro.types import Prompt

_NEW_LINES = 8
"""Lines at the end of a prompt that may be new."""
_LITERAL = r"[a-zA-Z0-9 _,:;'\"<>=/-]|\\[.+*?()\[\]{}|/\\-]"
_NO_NEWLINE = re.compile(
    rf"(?:{_LITERAL}|\\[dwS]|\[(?:{_LITERAL}|\\[dw]|[.+*?(){{}}|])+\]|\((?!\?)|\(\?[:=!]|[)|+*?]|\{{\d+(?:,\d*)?\}})*"
)
"""Regular expressions of which no part matches a newline, and whose look-ahead sees no further than one."""


class PromptEncoder:
    """:func:`retro.models.text.encode_prompt` for prompts that grow by appending.

    Args:
        remembered: prompts whose tokens are kept.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any] | None, remembered: int
    ) -> None:
        self._tokenizer, self._kwargs, self._remembered = tokenizer, chat_template_kwargs, remembered
        self._appends = not tokenizer.chat_template and cuts_at_newlines(tokenizer)
        self._heads: OrderedDict[str, npt.NDArray[np.int32]] = OrderedDict()  # whole lines, the latest last

    def __call__(self, prompt: Prompt) -> list[int]:
        """The tokens that a model answers."""
        if not isinstance(prompt, str) or not self._appends:
            return encode_prompt(self._tokenizer, prompt, self._kwargs)
        end = last = prompt.rfind("\n") + 1
        for _ in range(_NEW_LINES):
            if end == 0 or prompt[:end] in self._heads:
                break
            end = prompt.rfind("\n", 0, end - 1) + 1
        known = self._heads.pop(prompt[:end], None)
        if known is None:
            head = encode_prompt(self._tokenizer, prompt[:last], self._kwargs)
        else:
            head = [*known.tolist(), *self._more(prompt[end:last])]
        self._heads[prompt[:last]] = np.array(head, dtype=np.int32)
        if len(self._heads) > self._remembered:
            self._heads.popitem(last=False)
        return [*head, *self._more(prompt[last:])]

    def _more(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)] if text else []


def cuts_at_newlines(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of two texts, the first of which ends with a newline, are those of both together.

    They are if the tokenizer looks words up, does not change the text before, and cuts it at white space, or by a
    regular expression whose matches hold no newline but as a whole. No added token may hold a newline or depend on the
    white space around it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    parts = json.loads(backend.to_str())
    for token in parts["added_tokens"]:
        if "\n" in token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"]:
            return False
    return parts["model"]["type"] == "WordLevel" and parts["normalizer"] is None and _between_newlines(parts)


def _between_newlines(parts: Mapping[str, Any]) -> bool:
    cutter = parts["pre_tokenizer"] or {}
    if cutter.get("type") in ("Whitespace", "WhitespaceSplit"):
        return True
    if cutter.get("type") != "Split" or cutter["behavior"] not in ("Removed", "Isolated"):
        return False
    alternatives = _alternatives(cutter["pattern"].get("Regex", "."))
    others = [part for part in alternatives if part not in ("\n", r"\n")]
    found = len(others) < len(alternatives) or (cutter["invert"] and cutter["behavior"] == "Removed")
    return found and all(_NO_NEWLINE.fullmatch(part) for part in others)


def _alternatives(pattern: str) -> list[str]:
    """What a regular expression's outermost ``|`` separate."""
    found, depth = [""], 0
    for piece in re.findall(r"\\.|\[(?:\\.|[^\]])*\]|.", pattern, re.DOTALL):
        depth += {"(": 1, ")": -1}.get(piece, 0)
        if piece == "|" and depth == 0:
            found.append("")
        else:
            found[-1] += piece
    return found
