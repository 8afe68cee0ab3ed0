"""The language model that curates a bank: asked once for each prompt, its answers kept in a file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from retro.actors.openai import OpenAIActor
from retro.artifacts import digest_model, digest_parts, write_atomically
from retro.config import ActorSection, MemorySection, deciding
from retro.memory.bank import curator
from retro.reading import parse_json, read_lines
from retro.rollout.spec import PlayerParts
from retro.training.rounds import ActorFailedError
from retro.types import Actor, ActorError, Sampling, derive_seed

ANSWERS = "curator.jsonl"
SPENT = "curator_usage.jsonl"

logger = logging.getLogger(__name__)


class Curator:
    """Asks an actor, and keeps each answer before it is used: a fold that was stopped asks nothing twice.

    Args:
        file: JSON lines of a digest, of the section and the prompt, with the answer and its tokens.
    """

    def __init__(self, section: ActorSection, actor: Actor, file: Path) -> None:
        self._section, self._actor, self._file = section, actor, file
        self._tokens = 0
        self._kept: dict[str, tuple[str, int]] = {}
        self._loop = asyncio.Runner()
        if file.is_file():
            for _, line in read_lines(file):
                if line.endswith(b"\n"):  # a kill may leave half a line
                    kept = parse_json(line, str(file))
                    self._kept[kept["key"]] = kept["answer"], kept["tokens"]
            write_atomically(file, "".join(_line(key, *answer) for key, answer in self._kept.items()))

    @property
    def tokens(self) -> int:
        return self._tokens

    def __call__(self, prompt: str) -> str:
        """
        Raises:
            ActorFailedError: if it cannot answer.
        """
        named = json.dumps([deciding(self._section), prompt], sort_keys=True)
        key = hashlib.sha256(named.encode()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._asked(prompt, key)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_line(key, *self._kept[key]))
                file.flush()
                os.fsync(file.fileno())
        answer, tokens = self._kept[key]
        self._tokens += tokens
        return answer

    def _asked(self, prompt: str, key: str) -> tuple[str, int]:
        section = self._section
        sampling = Sampling(section.temperature, section.top_p, section.max_tokens, seed=derive_seed("curator", key))
        try:
            completion = self._loop.run(self._actor.complete(prompt, sampling))
        except ActorError as error:
            raise ActorFailedError(
                f"memory.curator: {error}; what it has answered is kept: correct this, and run the same command again"
            ) from None
        if completion.finish_reason == "length":
            logger.warning("memory.curator: an answer was cut at max_tokens=%d: raise it", section.max_tokens)
        return completion.text, completion.usage.total

    def close(self) -> None:
        self._loop.close()


@contextmanager
def curator_of(section: MemorySection, folder: Path, device: torch.device) -> Iterator[Curator | None]:
    """The curator of a memory, which keeps its answers in ``folder``; None if the memory asks none.

    Raises:
        ConfigError: if its actor cannot be made, or its server does not answer.
    """
    asked = curator(section)
    if asked is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with PlayerParts(device, folder / SPENT) as parts:
        actor = parts.actor(asked)
        if isinstance(actor, OpenAIActor):
            asyncio.run(actor.check())
        with closing(Curator(asked, actor, folder / ANSWERS)) as made:
            yield made


def curator_inputs(section: MemorySection) -> dict[str, str]:
    """Digests of the models of a memory's curator, if it has one that is loaded here."""
    asked = curator(section)
    if asked is None:
        return {}
    own = {"model": digest_model(asked.model)} if asked.chosen == "local" else {}
    return {f"curator {name}": digest for name, digest in (own | digest_parts(asked)).items()}


def _line(key: str, answer: str, tokens: int) -> str:
    return json.dumps({"key": key, "answer": answer, "tokens": tokens}) + "\n"
