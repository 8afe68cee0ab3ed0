"""A real vLLM server samples what our engine samples: adapters come and go, greedy answers, the gap, steps of PPO.

``RETRO_VLLM`` names the folder of a Python environment with vLLM (0.32 was run, on a CPU), or the URL of a server of
``data/quickstart/retrospective`` that was started as docs/running.md says.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.config import ModelSection, build
from retro.config.kinds import parse_section
from retro.config.models import GeneratorSection
from retro.models.adapters import SharedBase
from retro.retrospective.generator import EngineGenerator
from retro.stage import run_stage
from retro.training.collect import STAGE as COLLECT
from retro.training.policy.stage import STAGE as POLICY
from retro.types import Sampling
from tests.policy_stage import fresh_run, metrics, prepare, sampled_by_vllm
from tests.servers.processes import ROOT, free_port, wait_until_healthy

PLACE = os.environ.get("RETRO_VLLM", "")
BASE = ROOT / "data" / "quickstart" / "retrospective"
SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = ("--dtype", "float32", "--generation-config", "vllm", "--enable-lora", "--max-loras", "2")
PROMPTS = ["you see a mug 1 .", "look .", "go to desk 1", "it is closed", "you see nothing", "open cabinet 1"]

pytestmark = pytest.mark.skipif(not PLACE, reason="RETRO_VLLM names no environment with vLLM, and no server")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if PLACE.startswith("http"):
        yield PLACE
        return
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "server.log"
    command = [f"{PLACE}/bin/vllm", "serve", str(BASE), "--host", "127.0.0.1", "--port", str(port), *FLAGS]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SETTINGS
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until_healthy(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def test_each_adapter_answers_as_here(url: str, tmp_path: Path) -> None:
    section = ModelSection.model_validate({"base": str(BASE), "lora": {"r": 4, "alpha": 8.0}})
    base = SharedBase.load(section, "cpu")
    base.add_role("policy", section.lora, seed=1)
    prompts = [base.tokenizer.encode(text) for text in PROMPTS]
    options: dict[str, Any] = {"kind": "vllm", "base_url": url, "adapters": str(tmp_path), "max_sampler_gap": 1e-4}
    served, ours = build(parse_section(GeneratorSection, options), base=base), EngineGenerator(base)
    greedy, warm = Sampling(0.0, 1.0, 24), Sampling(1.0, 1.0, 24)
    answers = []
    for step in range(3):
        with torch.no_grad():
            for parameter in base.role_parameters("policy").values():
                generator = torch.Generator().manual_seed(step)
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        for generator_here in (served, ours):
            generator_here.use("policy", f"step-{step}")
        seeds = [[step, 2**62 + row] for row in range(len(prompts))]
        first, second = (one.sample(prompts, 1, greedy, [row[:1] for row in seeds]) for one in (served, ours))
        assert [group[0].ids for group in first] == [group[0].ids for group in second]
        answers.append([group[0].ids for group in first])
        drawn = served.sample(prompts, 2, warm, seeds)
        assert drawn == served.sample(prompts, 2, warm, seeds)
        assert len({tuple(sample.ids) for group in drawn for sample in group}) > len(prompts)
        ended = [sample.ids[-1] == base.tokenizer.eos_token_id for group in drawn for sample in group]
        assert ended == [sample.finish_reason == "stop" for group in drawn for sample in group]
    assert answers[0] != answers[1] != answers[2]
    assert sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir()) == ["policy-step-1", "policy-step-2"]


def test_steps_of_ppo(url: str, tmp_path: Path) -> None:
    prepared = prepare(BASE, tmp_path, partial(run_stage, COLLECT))
    config = sampled_by_vllm(fresh_run(prepared, BASE, tmp_path, steps=2), url)
    run_stage(POLICY, config)
    learnt = [line for line in metrics(config) if "policy_loss" in line]
    assert [line["step"] for line in learnt] == [1, 2]
    assert all(line["sampler_gap_max"] < 1e-4 for line in learnt)
