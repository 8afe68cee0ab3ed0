"""The language model that curates a bank: asked once for each prompt, its answers kept in a file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from retro.actors.budget import BudgetExceededError
from retro.actors.openai import OpenAIActor
from retro.artifacts import digest_model, digest_parts, write_atomically
from retro.config import ActorSection, ConfigError, MemorySection, deciding
from retro.memory.bank import curator
from retro.prompts import PromptTooLongError
from retro.reading import parse_json, read_lines
from retro.rollout.spec import PlayerParts
from retro.training.rounds import ActorFailedError
from retro.types import Actor, ActorError, Sampling, derive_seed

ANSWERS = "answers.jsonl"
SPENT = "usage.jsonl"

_KEY = re.compile(r"\bactor\.(?=[a-z])")

logger = logging.getLogger(__name__)


class Curator:
    """Asks an actor, and keeps each answer before it is used: a fold that was stopped, or is made again, asks nothing
    twice.

    Args:
        digests: Of the models that ``actor`` loads.
        file: JSON lines with a digest of all that decides an answer, the answer, and its tokens.
    """

    def __init__(self, section: ActorSection, actor: Actor, digests: Mapping[str, str], file: Path) -> None:
        self._section, self._actor, self._digests, self._file = section, actor, dict(digests), file
        self._tokens = 0
        self._kept: dict[str, tuple[str, int]] = {}
        self._loop = asyncio.Runner()
        if file.is_file():
            lines = [line for _, line in read_lines(file)]
            whole = [line for line in lines if line.endswith(b"\n")]
            if len(whole) < len(lines):  # a kill left half a line
                write_atomically(file, b"".join(whole))
            for line in whole:
                kept = parse_json(line, str(file))
                self._kept[kept["key"]] = kept["answer"], kept["tokens"]

    @property
    def tokens(self) -> int:
        return self._tokens

    def __call__(self, prompt: str) -> str:
        """
        Raises:
            ActorFailedError: if it cannot answer.
            BudgetExceededError: if its budget is spent.
        """
        named = json.dumps([deciding(self._section), self._digests, prompt], sort_keys=True)
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
        with _its_own_keys():
            completion = self._loop.run(self._actor.complete(prompt, sampling))
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
    actor_section = curator(section)
    if actor_section is None:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with PlayerParts(device, folder / SPENT) as parts:
        with _its_own_keys():
            actor = parts.actor(actor_section)
            if isinstance(actor, OpenAIActor):
                asyncio.run(actor.check())
        with closing(Curator(actor_section, actor, curator_inputs(section), folder / ANSWERS)) as made:
            yield made


@contextmanager
def _its_own_keys() -> Iterator[None]:
    """Errors of an actor name the keys of ``memory.curator``, and say what to do."""
    kept = "what it has answered is kept: correct this, and run the same command again"
    try:
        yield
    except PromptTooLongError as error:
        raise ActorFailedError(
            f"memory.curator: {error}; lower memory.retries_per_request or memory.budget; {kept}"
        ) from None
    except ActorError as error:
        raise ActorFailedError(f"memory.curator: {_KEY.sub('memory.curator.', str(error))}; {kept}") from None
    except (ConfigError, BudgetExceededError) as error:
        raise type(error)(_KEY.sub("memory.curator.", str(error))) from None


def curator_inputs(section: MemorySection) -> dict[str, str]:
    """Digests of the models of a memory's curator, if it has one that is loaded here."""
    actor = curator(section)
    if actor is None:
        return {}
    own = {"model": digest_model(actor.model)} if actor.chosen == "local" else {}
    return {f"curator {name}": digest for name, digest in (own | digest_parts(actor)).items()}


def _line(key: str, answer: str, tokens: int) -> str:
    return json.dumps({"key": key, "answer": answer, "tokens": tokens}) + "\n"
