"""The imitation anchor: its gradient, its batches, what the stage may read for it, and exact resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retro.buffer.store import ReplayBuffer
from retro.config import RunConfig
from retro.config.view import UndeclaredKeyError
from retro.rl.options import PpoOptions
from retro.stage import run_stage
from retro.training.algorithms.ppo import Ppo
from retro.training.examples import imitated
from retro.training.policy.imitation import Imitation
from retro.training.policy.models import PolicyModels
from retro.training.policy.stage import STAGE as POLICY
from retro.training.sft import IGNORED, encode
from tests.policy_stage import metrics, policy_config, write_models
from tests.rated_groups import fill

ANCHOR = {"imitation": {"coefficient": 0.5, "batch_size": 3}}


def ready(model: Path, runs: Path, name: str = "run", **ppo: Any) -> RunConfig:
    """A run folder with rated reflections and random adapters; no episode is played for the rewards."""
    config = policy_config(model, runs, name, reward="length", validation_contexts=0, steps=2, **ppo)
    with ReplayBuffer(config.buffer_url) as buffer:
        fill(buffer)
    write_models(config)
    return config


def test_the_gradient_is_that_of_the_cross_entropy_however_it_is_shared(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Against a plain forward pass with labels, the mean over a batch's tokens; by one process, and by two."""
    config = ready(tiny_model_dir, tmp_path)
    models = PolicyModels.load(config, torch.device("cpu"), config.run_dir / "sft" / "adapter", needs=())
    examples = list(imitated(config, models.encoder))

    def learnt(seed: int, rank: int = 0, processes: int = 1, size: int = 5) -> tuple[dict[str, torch.Tensor], float]:
        parameters = models.trained_parameters
        for parameter in parameters.values():
            parameter.grad = None
        with models.learning(models.packs([])):
            loss = Imitation(models, examples, rank, processes).backward(0.5, size, seed)
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in parameters.items()
        }, float(loss)

    whole, loss = learnt(0, size=99)  # of all 24
    total, tokens = torch.zeros(()), 0
    with models.base.role("policy", train=True) as model:
        for parameter in models.trained_parameters.values():
            parameter.grad = None
        for example in (encode(models.encoder, item) for item in examples):
            labels = torch.tensor([example.labels])
            count = int((labels != IGNORED).sum())
            total = total + model(input_ids=torch.tensor([example.input_ids]), labels=labels).loss * count
            tokens += count
        (0.5 * total / tokens).backward()
    assert loss == pytest.approx(total.item() / tokens, rel=1e-5)
    for name, parameter in models.trained_parameters.items():
        torch.testing.assert_close(whole[name], parameter.grad, rtol=1e-4, atol=1e-6)

    single, loss = learnt(3)
    shares = [learnt(3, rank, 2) for rank in range(2)]
    assert loss == pytest.approx(sum(share for _, share in shares), rel=1e-5)
    for name, gradient in single.items():
        torch.testing.assert_close(gradient, shares[0][0][name] + shares[1][0][name], rtol=1e-4, atol=1e-6)
    assert learnt(3)[1] == loss and learnt(4)[1] != loss


def test_only_an_anchor_lets_the_stage_read_which_reflections_are_imitated(
    make_config: Callable[..., RunConfig],
) -> None:
    plain, anchored = make_config(), make_config(ppo=ANCHOR)
    assert Ppo(PpoOptions()).needs == Ppo.needs == {"rewards", "reference", "values"}
    with pytest.raises(UndeclaredKeyError, match=r"sft\.rating"):
        attrgetter("sft.rating")(POLICY.view(plain))
    assert POLICY.view(anchored).sft.rating == "delta_return"
    assert "sft.threshold" in {leaf.key for leaf in POLICY.deciding(anchored)}
    with pytest.raises(UndeclaredKeyError, match=r"sft\.epochs"):
        attrgetter("sft.epochs")(POLICY.view(anchored))


def test_a_stage_with_an_anchor_resumes_to_the_same_bits(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = ready(tiny_model_dir, tmp_path, checkpoint_every=1, **ANCHOR)
    folder = run_stage(POLICY, config)
    lines, weights = metrics(config), load_file(folder / "checkpoint-2" / "adapter_model.safetensors")
    assert all(line["imitation_loss"] > 0 for line in lines)
    shutil.rmtree(folder / "checkpoint-2")
    manifest = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(manifest | {"status": "running", "outputs": {}}))
    run_stage(POLICY, config)
    assert metrics(config) == lines
    again = load_file(folder / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
