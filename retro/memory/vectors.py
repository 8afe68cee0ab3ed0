"""Cosine similarity of texts by sentence vectors of a transformers encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from retro.config import ConfigError
from retro.memory.similarity import MAX_CHARS

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 512
"""Of a longer text only the beginning is compared; a shorter limit of the encoder's own counts."""


class Vectors:
    """An index of texts that computes how similar each of them is to another text.

    The vector of a text is the mean of the encoder's last hidden states over the tokens of the text, scaled to length
    1 (mean pooling, Sentence-BERT, arXiv 1908.10084). Each text is encoded alone, in float32 on the CPU, so its vector
    does not depend on the others.
    """

    def __init__(self, model: str, texts: Sequence[str]) -> None:
        self._encoder = encoder(model)
        self._rows = [self._encoder.encode(text) for text in texts]

    def similarities(self, text: str) -> list[float]:
        """The cosine between ``text`` and each indexed text, in [−1, 1] up to rounding."""
        if not self._rows:
            return []
        vector = self._encoder.encode(text)
        return [float(row @ vector) for row in self._rows]


class Encoder:
    """A transformers encoder with its tokenizer.

    Raises:
        ConfigError: if there is none, its weights are not in safetensors files, or it needs code of its own.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer  # here: importing them takes seconds

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            self._model = AutoModel.from_pretrained(model, trust_remote_code=False, use_safetensors=True).float().eval()
            limits = (getattr(self._model.config, "max_position_embeddings", None), self._tokenizer.model_max_length)
            self._max_tokens = min(MAX_TOKENS, *(limit for limit in limits if limit))
            self.encode("a text")  # an encoder-decoder, for one, cannot
        except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
            why = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"memory.vectors: {model}: not an encoder with its tokenizer and safetensors weights: {why}"
            ) from None

    def encode(self, text: str) -> torch.Tensor:
        """The vector of a text, float32, of length 1, shape (H,)."""
        import torch

        inputs = self._tokenizer(
            text[:MAX_CHARS] or " ", return_tensors="pt", truncation=True, max_length=self._max_tokens
        )
        if not inputs["input_ids"].shape[1]:  # a tokenizer without special tokens, and a text of none of its words
            return torch.zeros(self._model.config.hidden_size)
        with torch.no_grad():
            hidden: torch.Tensor = self._model(**inputs).last_hidden_state[0]  # (T, H)
        return torch.nn.functional.normalize(hidden.mean(0), dim=0)


@cache
def encoder(model: str) -> Encoder:
    """The encoder in a folder, or of the hub: memories of one process share it."""
    return Encoder(model)
