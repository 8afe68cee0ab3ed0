"""The generator ``vllm``: a vLLM server samples, with adapters that this process pushes to it as they are trained."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from retro.artifacts import digest_path
from retro.config import ConfigError
from retro.layout import ADAPTER_CONFIG
from retro.models.rounds import all_of, run_sync
from retro.reading import read_json
from retro.retrospective.vllm_server import AdapterMissingError, VllmOptions, VllmServer
from retro.types import Sampling

if TYPE_CHECKING:
    from retro.models.adapters import SharedBase
    from retro.models.running import Generated

logger = logging.getLogger(__name__)

KEPT = 2
"""Adapters that stay loaded on the server: the latest, and the one before."""
COMPARED = 4
"""Samples of a new adapter whose log-probabilities are compared with those of this process."""
_PUSHES = 3
"""How often a request's adapter is pushed again before the server counts as broken."""
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Adapter:
    name: str
    rank: int
    folder: Path


class VllmGenerator:
    """Samples from a vLLM server that serves the same base.

    :meth:`use` saves the adapter, and the next sampling pushes it under a name that its content decides
    (``policy-step-17-2f61ab08c94e``). So a name is never used for other weights, which vLLM would refuse, and whose
    prompts it would take from its cache. A server that has lost the adapter, because it was restarted, gets it again,
    and the request is repeated.

    Prompts are sent as token ids, each sample is a request with its own seed, and the sampled tokens come back as ids
    with the server's log-probabilities, which are at temperature 1 whatever the sampling's temperature is. Training
    uses its own log-probabilities; those of the server serve to measure the sampler gap. vLLM's sums depend on what
    else is in its batch, so a repeated run is equal only up to rounding, and a rounding may change a token.

    Of several processes, rank 0 alone pushes, and the others wait until the server has the adapter.
    """

    Options = VllmOptions

    def __init__(self, options: VllmOptions, base: SharedBase) -> None:
        from accelerate import PartialState

        from retro.models.backbone import plain_model
        from retro.models.text import end_tokens

        model = plain_model(base.model)
        self._options, self._base = options, base
        ends = sorted(end_tokens(base.tokenizer, model.generation_config))
        self._server = VllmServer(options, str(model.config.name_or_path), ends)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._main: bool = PartialState().is_main_process
        self._folder = Path(options.adapters or tempfile.mkdtemp(prefix="retro-adapters-")).resolve()
        if options.adapters is None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._used: tuple[str | None, str] | None = None
        self._adapter: _Adapter | None = None
        self._model = ""
        """What requests call the adapter, or the base; empty before it was pushed."""
        self._pushes = 0
        self._loaded: list[_Adapter] = []
        self._compared = False

    @classmethod
    def from_options(cls, options: VllmOptions, base: SharedBase) -> Self:
        return cls(options, base)

    def use(self, role: str | None, version: str) -> None:
        if (role, version) == self._used:
            return
        self._used = (role, version)
        self._adapter = None if role is None else self._saved(role, version)
        self._model, self._compared = "", False

    def sample(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Generated]]:
        if any(len(row) != count for row in seeds) or len(seeds) != len(prompts):
            raise ValueError(f"sample: {len(prompts)} prompts need {count} seeds each")
        requests = [
            (list(prompt), replace(sampling, max_tokens=self._room(len(prompt), sampling), seed=seed))
            for prompt, row in zip(prompts, seeds, strict=True)
            for seed in row
        ]
        samples = iter(run_sync(self._sampled(requests)))
        groups = [list(islice(samples, count)) for _ in prompts]
        self._compare(prompts, groups)
        return groups

    def _room(self, length: int, sampling: Sampling) -> int:
        """The tokens that an answer may have."""
        if length == 0:
            raise ValueError("an empty prompt cannot be continued: give at least one token")
        room = (self._base.context or 2**31) - length
        if room <= 0:
            raise ValueError(
                f"a prompt of {length} tokens leaves no room in the model's context of {self._base.context} tokens"
            )
        return min(sampling.max_tokens, room)

    def _saved(self, role: str, version: str) -> _Adapter:
        """The adapter, which rank 0 has written into the folder for the server."""
        with tempfile.TemporaryDirectory(prefix="retro-adapter-") as scratch:
            written = Path(scratch)
            self._base.save_role(role, written)
            label = re.sub(r"[^A-Za-z0-9]+", "-", version).strip("-")[-24:]
            name = f"{role}-{label}-{digest_path(written)[:12]}"
            rank = int(read_json(written / ADAPTER_CONFIG)["r"])
            if self._main:
                shutil.copytree(written, self._folder / name, dirs_exist_ok=True)
        return _Adapter(name, rank, self._folder / name)

    async def _sampled(self, requests: Sequence[tuple[list[int], Sampling]]) -> list[Generated]:
        if not self._model:
            await self._push()
        lock = asyncio.Lock()
        return await all_of(self._one(prompt, sampling, lock) for prompt, sampling in requests)

    async def _one(self, prompt: list[int], sampling: Sampling, lock: asyncio.Lock) -> Generated:
        missed: list[float] = []
        while True:
            pushes = self._pushes
            try:
                return await self._server.complete(self._model, prompt, sampling)
            except AdapterMissingError:
                missed.append(time.monotonic())
                waited = missed[-1] - missed[0]
                if len(missed) > _PUSHES if self._main else waited > self._options.timeout_seconds:
                    raise
            if not self._main:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            async with lock:
                if self._pushes == pushes:  # the first of the requests that miss it pushes for all of them
                    logger.warning("the vLLM server has lost %s: it is pushed again", self._model)
                    await self._push()

    async def _push(self) -> None:
        """Let the server have the adapter, and unload what is older than the one before it."""
        base, adapter = await self._server.base(patient=self._pushes > 0), self._adapter
        if adapter is not None and self._main:
            root = self._options.adapters_on_server
            path = f"{root.rstrip('/')}/{adapter.name}" if root else str(adapter.folder)
            await self._server.load(adapter.name, path, adapter.rank)
            self._loaded = [*(older for older in self._loaded if older.name != adapter.name), adapter]
        self._model = base if adapter is None else adapter.name
        self._pushes += 1
        while len(self._loaded) > KEPT:
            oldest = self._loaded.pop(0)
            await self._server.unload(oldest.name)
            shutil.rmtree(oldest.folder, ignore_errors=True)

    def _compare(self, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Generated]]) -> None:
        """Compare the first samples of a new adapter with this process, once. Each process enters the role, so that a
        base in pieces can be gathered."""
        if self._compared or self._options.max_sampler_gap is None:
            return
        self._compared = True
        chosen = [(prompt, group[0]) for prompt, group in zip(prompts, groups, strict=True) if group][:COMPARED]
        gap = self._gap(chosen)
        if gap is None:
            return
        logger.info("vLLM server: %s has a sampler gap of %.2g nats a token", self._model, gap)
        if not gap <= self._options.max_sampler_gap:  # also for NaN
            raise ConfigError(
                f"vLLM server {self._options.base_url}: its log-probabilities of samples from {self._model} are "
                f"{gap:.3g} nats a token from those that this process computes; model.generator.max_sampler_gap allows "
                f"{self._options.max_sampler_gap:g}. Check that both sides have the same base, model.dtype and "
                "model.quantization, and that the server runs with --logprobs-mode raw_logprobs, its default"
            )

    def _gap(self, chosen: Sequence[tuple[Sequence[int], Generated]]) -> float | None:
        """The mean over tokens of |log p_server − log p_here|, at temperature 1; None without samples."""
        from retro.models.packing import pack, response_outputs

        strange = [token for _, sample in chosen for token in sample.ids if token >= self._vocabulary]
        if strange:
            raise ConfigError(
                f"vLLM server {self._options.base_url}: it sampled the token {strange[0]}, and the vocabulary of "
                f"model.base has {self._vocabulary}: it serves another base"
            )
        distances: list[float] = []
        with self._base.role(self._used[0] if self._used else None) as model:
            if chosen:
                packed = pack([prompt for prompt, _ in chosen], [[sample.ids] for _, sample in chosen])
                rows = response_outputs(model, packed).log_probs.tolist()
                for (_, sample), row in zip(chosen, rows, strict=True):
                    distances += [abs(a - b) for a, b in zip(sample.log_probs, row, strict=False)]
        return sum(distances) / len(distances) if distances else None
