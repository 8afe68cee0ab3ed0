"""Text to tokens and back: the one place that knows chat templates and end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from transformers import PreTrainedTokenizerBase

from retro.types import Message, Prompt


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: Prompt) -> list[int]:
    """The tokens that a model answers.

    A tokenizer with a chat template gets its turns (plain text is one user's) and the opening of the answer; another
    one gets the begin token, if it has one, and the plain text (messages are joined by newlines).
    """
    if tokenizer.chat_template:
        turns: Sequence[Message] = [{"role": "user", "content": text}] if isinstance(text, str) else text
        messages = [{"role": str(turn["role"]), "content": turn["content"]} for turn in turns]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(cast(Sequence[int], ids))
    plain = text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)
    start = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return [*start, *_encode(tokenizer, plain)]


def encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a whole answer: the text, then the end token.

    Raises:
        ValueError: if the tokenizer has no end token.
    """
    return [*_encode(tokenizer, text), _end(tokenizer)]


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, Literal["stop", "length"]]:
    """The text of a generated answer without its end token, and whether it ended (``stop``) or was cut (``length``)."""
    ended = bool(ids) and ids[-1] in end_tokens(tokenizer)
    text = decode(tokenizer, ids[:-1] if ended else ids)
    return text.strip(), "stop" if ended else "length"


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Plain text, special tokens left out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What ends an answer: the tokenizer's end token (a chat model's end of turn), or none."""
    return frozenset() if tokenizer.eos_token_id is None else frozenset({int(tokenizer.eos_token_id)})


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]


def _end(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no end token: set eos_token in tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)
