"""A generator of one's own: the built-in engine, with a transcript of every prompt and every response.

    model:
      generator:
        kind: examples.extensions.transcript:TranscriptGenerator
        options: {file: transcript.jsonl}

A generator turns prompts of tokens into sampled tokens with their log-probabilities. Collection, training and
evaluation sample through it. Another one may ask a server that holds a copy of the adapter: `use` says which adapter,
and when its weights have changed. PPO learns from these samples, so they are drawn from the adapter as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from retro.config import Section
from retro.retrospective.generator import EngineGenerator
from retro.types import Sampling

if TYPE_CHECKING:  # a config that names this generator is loaded without torch
    from retro.models.adapters import SharedBase
    from retro.models.running import Generated


class TranscriptGenerator(EngineGenerator):
    class Options(Section):
        file: str = "transcript.jsonl"
        """Grows by a line for each prompt."""

    def __init__(self, base: SharedBase, file: Path) -> None:
        super().__init__(base)
        self.file, self.tokenizer, self.version = file, base.tokenizer, ""

    @classmethod
    def from_options(cls, options: Options, base: SharedBase) -> Self:  # type: ignore[override]
        return cls(base, Path(options.file))

    def use(self, role: str | None, version: str) -> None:
        super().use(role, version)
        self.version = version

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        from retro.models.text import decode_response  # here, for the same reason

        groups = super().sample(prompts, count, sampling, seeds)
        with self.file.open("a", encoding="utf-8") as file:
            for prompt, group in zip(prompts, groups, strict=True):
                texts = [(decode_response(self.tokenizer, response.ids), response.finish_reason) for response in group]
                line = {"version": self.version, "prompt": self.tokenizer.decode(list(prompt)), "responses": texts}
                file.write(json.dumps(line) + "\n")
        return groups
