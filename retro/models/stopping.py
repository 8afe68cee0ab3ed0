"""Stop strings: found in the decoded tail, looked for only where the newest token can have completed one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from retro.models.text import decode

_BATCH = 4096


class StopStrings:
    """Tells whether a row's text contains one of its stop strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[str] | None = None
        self._closing: dict[tuple[str, ...], npt.NDArray[np.bool_]] = {}

    def closing(self, stop: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """Which tokens can complete one of ``stop``: (V,). A stop string is complete only with its last
        character, so the token's text must hold that one (or a part of a character that other tokens complete)."""
        if stop not in self._closing:
            last = {text[-1] for text in stop} | {"\N{REPLACEMENT CHARACTER}"}
            self._closing[stop] = np.array([bool(last & set(piece)) for piece in self._token_texts()])
        return self._closing[stop]

    def found(self, ids: Sequence[int], stop: tuple[str, ...]) -> bool:
        text = decode(self._tokenizer, ids)
        return any(item in text for item in stop)

    def _token_texts(self) -> list[str]:
        """Each token's text as it stands inside a sentence: what it adds to a token before it."""
        if self._pieces is None:
            size = len(self._tokenizer)
            anchor = self._anchor()
            pairs = [[anchor, token] for token in range(size)]
            texts = [
                text
                for start in range(0, size, _BATCH)
                for text in self._tokenizer.batch_decode(pairs[start : start + _BATCH], skip_special_tokens=True)
            ]
            before = len(decode(self._tokenizer, [anchor]))
            self._pieces = [text[before:] for text in texts]
        return self._pieces

    def _anchor(self) -> int:
        special = set(self._tokenizer.all_special_ids)
        return next(token for token in range(len(self._tokenizer)) if token not in special)
