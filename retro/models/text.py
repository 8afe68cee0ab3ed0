"""Text to tokens and back. Only this module handles chat templates and end tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import jinja2
from transformers import GenerationConfig, PreTrainedTokenizerBase

from retro.types import Message, Prompt

_MARK = "0123456789"
"""An answer that templates do not change and that ends of turns do not contain."""
_turn_ends: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[str | None, int | None]] = WeakKeyDictionary()
"""The chat template, and the token that ends an answer in it."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, text: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """The tokens of a prompt.

    With a chat template they are its turns (plain text is one user turn) and the start of the answer; without one, the
    begin token, if there is one, and the plain text (messages are joined by newlines).

    Args:
        chat_template_kwargs: further arguments of the chat template, such as ``enable_thinking: False``.
    """
    if tokenizer.chat_template:
        turns: Sequence[Message] = [{"role": "user", "content": text}] if isinstance(text, str) else text
        messages = [{"role": str(turn["role"]), "content": turn["content"]} for turn in turns]
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **(chat_template_kwargs or {})
        )
        return list(cast(Sequence[int], ids))
    plain = text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*start, *_encode(tokenizer, plain)]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a whole answer: the text, then the token that ends it.

    Raises:
        ValueError: if the tokenizer has no end token.
    """
    return [*_encode(tokenizer, text), _end(tokenizer)]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a generated answer without its end token."""
    ended = bool(ids) and ids[-1] in end_tokens(tokenizer)
    return decode(tokenizer, ids[:-1] if ended else ids).strip()


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Plain text without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None = None) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's end token, the chat template's end of turn, and those that the
    model's ``generation_config.json`` lists as ``eos_token_id``."""
    own = None if generation is None else generation.eos_token_id
    listed = own if isinstance(own, list) else [own]
    found = (tokenizer.eos_token_id, _turn_end(tokenizer), *listed)
    return frozenset(int(token) for token in found if token is not None)


def unread_template_kwargs(tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any]) -> list[str]:
    """The ``chat_template_kwargs`` that the chat template does not mention; all of them without a template."""
    template = str(tokenizer.chat_template or "")
    return sorted(name for name in chat_template_kwargs if not re.search(rf"\b{re.escape(name)}\b", template))


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that follows an answer in the chat template (``<|im_end|>``, ``<|eot_id|>`` …), if any does.

    The tokenizer's own end token may be another one, which the model has not learnt to write after a turn.
    """
    template = str(tokenizer.chat_template) if tokenizer.chat_template else None
    known = _turn_ends.get(tokenizer)
    if known is None or known[0] != template:
        known = _turn_ends[tokenizer] = (template, _rendered_end(tokenizer) if template else None)
    return known[1]


def _rendered_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except jinja2.TemplateError:  # the template does not allow these turns, so only the tokenizer's end token counts
        return None
    if _MARK not in text:
        return None
    after = _encode(tokenizer, text.rpartition(_MARK)[2])
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return after[0] if after and after[0] in special else None


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    end = _turn_end(tokenizer)
    end = tokenizer.eos_token_id if end is None else end
    if end is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no end token: set eos_token in tokenizer_config.json"
        )
    return int(end)
