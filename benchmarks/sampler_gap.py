"""How far a correct sampler's log-probabilities are from the recomputed ones, by dtype, and those of wrong samplers.

    python benchmarks/sampler_gap.py CONFIG [key.sub=value …]

CONFIG is that of a run whose ppo stage has at least two checkpoints and whose buffer is there. The trained policy is
its last checkpoint but one. The bound ``ppo.max_sampler_gap`` has to lie between the rows of right and wrong samplers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from retro.buffer.store import ReplayBuffer
from retro.buffer.views import Context, contexts
from retro.cli.errors import one_line_errors
from retro.config import ConfigError, RunConfig, load_config
from retro.layout import RunFolder
from retro.models.loading import resolve_device
from retro.training.checkpoints import checkpoints
from retro.training.policy.batch import sampler_gaps
from retro.training.policy.groups import Group, Response
from retro.training.policy.models import PolicyModels
from retro.types import Sampling, Split, derive_seed

CONTEXTS, GROUP = 24, 4
PRECISIONS = (
    ("float32", "none"),
    ("float16", "none"),
    ("bfloat16", "none"),
    ("float32", "nf4"),
    ("bfloat16", "nf4"),
)


def load(config: RunConfig, adapter: Path, dtype: str = "float32", quantization: str = "none") -> PolicyModels:
    model = config.model.model_copy(update={"dtype": dtype, "quantization": quantization})
    own = config.model_copy(update={"model": model})
    return PolicyModels.load(own, resolve_device(config.device), adapter)


def sample(config: RunConfig, models: PolicyModels, chosen: Sequence[Context], temperature: float) -> list[Group]:
    seeds = [[derive_seed(config.seed, "gap", slot, index) for index in range(GROUP)] for slot in range(len(chosen))]
    groups = models.sample(chosen, Sampling(temperature, 1.0, config.model.max_new_tokens), seeds, step=0)
    return [
        Group(
            slot,
            context,
            tuple(
                Response(slot, index, tuple(written.ids), tuple(written.log_probs), text, written.finish_reason)
                for index, (written, text) in enumerate(group)
            ),
        )
        for slot, (context, group) in enumerate(zip(chosen, groups, strict=True))
    ]


def gap(
    config: RunConfig,
    sampler: PolicyModels,
    trained: PolicyModels,
    chosen: Sequence[Context],
    temperature: float = 1.0,
) -> float:
    """Mean over tokens, nats."""
    groups = sample(config, sampler, chosen, temperature)
    responses = [response for group in groups for response in group.responses]
    with torch.no_grad():
        rollout = trained.rollout(trained.packs(groups), responses, [0.0] * len(responses))
    lengths = [len(response.ids) for response in responses]
    gaps = sampler_gaps(rollout, responses)
    return sum(own * length for own, length in zip(gaps, lengths, strict=True)) / sum(lengths)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    config = load_config(sys.argv[1], sys.argv[2:])
    found = checkpoints(RunFolder(config.run_dir).policy)
    if len(found) < 2:
        raise ConfigError(f"{RunFolder(config.run_dir).policy}: two checkpoints are needed; run the ppo stage first")
    (older_step, older), (step, trained_adapter) = found[-3:-1] if len(found) > 2 else found
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        chosen = list(islice(contexts(buffer, [Split.TRAIN], config.buffer.environments), CONTEXTS))
    print(f"{len(chosen)} contexts × {GROUP} responses, policy of step {step}: mean gap, nats a token")
    trained = load(config, trained_adapter)
    for dtype, quantization in PRECISIONS:
        models = load(config, trained_adapter, dtype, quantization)
        print(f"right: {dtype}, {quantization}: {gap(config, models, models, chosen):.1e}", flush=True)
        if quantization != "none":
            print(f"wrong: the same for a policy in float32: {gap(config, models, trained, chosen):.3f}", flush=True)
    wrong = {f"the adapter of step {older_step}": older, "the sft adapter": RunFolder(config.run_dir).sft_adapter}
    for name, adapter in wrong.items():
        print(f"wrong: {name}: {gap(config, load(config, adapter), trained, chosen):.3f}", flush=True)
    print(f"wrong: temperature 0.7: {gap(config, trained, trained, chosen, temperature=0.7):.3f}")


if __name__ == "__main__":
    with one_line_errors():
        main()
