"""Counting an API model's tokens with its tokenizer, without loading a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from retro.config import ConfigError
from retro.types import TokenLimit

_CHAT_TEMPLATE_TOKENS = 64
"""Set aside for what a server's chat template puts around the prompt: turns, a system message of its own."""


def prompt_limit(tokenizer: str, context_tokens: int, max_tokens: int, chat: bool) -> TokenLimit:
    """What a prompt may have beside an answer of ``max_tokens`` in a context of ``context_tokens``.

    Args:
        tokenizer: A folder or a hub name.
        chat: Whether the server's chat template is put around the prompt.

    Raises:
        ConfigError: if there is no room for a prompt, or the tokenizer cannot be loaded.
    """
    around = _CHAT_TEMPLATE_TOKENS if chat else 0
    room = context_tokens - max_tokens
    if room <= around:
        raise ConfigError(
            f"actor.max_tokens={max_tokens} leaves no room for a prompt in actor.context_tokens={context_tokens}"
        )
    count = _counter(tokenizer)
    return TokenLimit(lambda text: around + count(text), room, "actor.context_tokens")


def _counter(name: str) -> Callable[[str], int]:
    """Counts with ``tokenizer.json`` of the folder ``name``; if there is none, with what transformers makes of it."""
    file = Path(name) / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            fast = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"actor.tokenizer {file}: {error}") from None
        fast.no_truncation()
        fast.no_padding()
        return lambda text: len(fast.encode(text).ids)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"actor.tokenizer {name!r} cannot be loaded: {str(error).splitlines()[0]} (what is needed: a folder with "
            "tokenizer.json, or a hub name)"
        ) from None
    return lambda text: len(tokenizer.encode(text))
