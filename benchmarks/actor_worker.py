"""The local actor of one checkout, playing made-up conversations: ``python -P benchmarks/actor_worker.py WORK.json``.

It imports what ``PYTHONPATH`` names and nothing of this folder, so that the same file measures any commit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import resource
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from transformers import AutoTokenizer
from transformers.models.llama import LlamaForCausalLM

from retro.actors.local import LocalActor
from retro.types import Sampling, derive_seed

LIMITED = hasattr(LocalActor, "conversation")
"""Whether this commit lets conversations wait for room."""


class Play:
    """Conversations that all begin at once; each turn an answer of some tokens, then an observation."""

    def __init__(self, work: dict[str, Any], actor: LocalActor) -> None:
        self._work, self._actor = work, actor
        self.seconds: list[list[float]] = [[] for _ in range(work["turns"])]
        """The process's CPU time between each conversation's question and its answer, turn by turn."""
        self.completion_tokens = self.prompt_tokens = 0

    async def conversation(self, number: int) -> str:
        """Play one to its end: a digest of its whole text."""
        work, name = self._work, f"conversation {number}"
        words = random.Random(derive_seed(work["seed"], number))
        text = self._observation(words, words.randint(work["opening"] // 2, 2 * work["opening"] - work["opening"] // 2))
        holding = getattr(self._actor, "conversation", None)  # older commits learn nothing of an end
        with nullcontext() if holding is None else holding(name):
            for turn in range(work["turns"]):
                tokens = words.randint(3, 9)
                sampling = Sampling(work["temperature"], max_tokens=tokens, seed=words.getrandbits(60), session=name)
                asked = process_time()
                answer = await self._actor.complete(text, sampling)
                self.seconds[turn].append(process_time() - asked)
                self.completion_tokens += answer.usage.completion_tokens
                self.prompt_tokens = max(self.prompt_tokens, answer.usage.prompt_tokens)
                text += f" {answer.text}\n{self._observation(words, work['turn_tokens'] - tokens)}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _observation(self, words: random.Random, tokens: int) -> str:
        return " ".join(f"w{words.randrange(1, self._work['vocabulary'])}" for _ in range(tokens - 1)) + "\nw1"

    async def all(self) -> list[str]:
        return await asyncio.gather(*(self.conversation(number) for number in range(self._work["conversations"])))


def main() -> None:
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = LlamaForCausalLM.from_pretrained(work["folder"]).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(work["folder"])
    print(json.dumps({"parameters": model.num_parameters()}), flush=True)
    while json.loads(sys.stdin.readline())["do"] == "play":
        limit = {"cache_bytes": int(work["cache_gib"] * 2**30)} if work["cache_gib"] and LIMITED else {}
        play = Play(work, LocalActor(model, tokenizer, rows=work["conversations"], **limit))
        wall, cpu = perf_counter(), process_time()
        digests = asyncio.run(play.all())
        laps = {"wall_seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}
        told = {
            **laps,
            "digests": digests,
            "turn_seconds": [sorted(seconds)[len(seconds) // 2] for seconds in play.seconds],
            "completion_tokens": play.completion_tokens,
            "longest_prompt": play.prompt_tokens,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
