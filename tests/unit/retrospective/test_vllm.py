"""The generator ``vllm`` against a server that answers as vLLM does and samples with our engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.config import ConfigError, ModelSection, RunConfig, build, parse_config
from retro.config.kinds import parse_section
from retro.config.models import GeneratorSection
from retro.models.adapters import SharedBase
from retro.retrospective.generator import EngineGenerator, Generator
from retro.retrospective.vllm import VllmGenerator
from retro.training.episode_key import episode_key
from retro.types import Sampling
from retro.wire import retrying
from tests.servers.vllm import VllmServer, refusal, vllm_server

PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]
SEEDS = [[1, 2**62], [3, 4]]
WARM = Sampling(1.0, 1.0, 6)


def base_of(model: Path) -> SharedBase:
    section = ModelSection.model_validate({"base": str(model), "lora": {"r": 2, "alpha": 4.0}})
    base = SharedBase.load(section, "cpu")
    base.add_role("policy", section.lora, seed=1)
    return base


def learn(base: SharedBase, seed: int) -> None:
    """Other weights, as after a step of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.role_parameters("policy").values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> SharedBase:
    return base_of(tiny_model_dir)


@pytest.fixture(scope="module")
def served_base(tiny_model_dir: Path) -> SharedBase:
    return base_of(tiny_model_dir)


@pytest.fixture
def server(base: SharedBase, served_base: SharedBase, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmServer]:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)
    learn(base, 1)
    with vllm_server(served_base) as running:
        yield running


def generator_at(server: VllmServer, base: SharedBase, **options: Any) -> VllmGenerator:
    section = parse_section(GeneratorSection, {"kind": "vllm", "base_url": server.url, "concurrency": 4, **options})
    generator: VllmGenerator = build(section, base=base)
    return generator


def engines(base: SharedBase, sampling: Sampling = WARM, role: str | None = "policy") -> list[list[list[int]]]:
    engine = EngineGenerator(base)
    engine.use(role, "")
    return [[drawn.ids for drawn in group] for group in engine.sample(PROMPTS, 2, sampling, SEEDS)]


def drawn_by(generator: Generator, version: str, sampling: Sampling = WARM, role: str | None = "policy") -> Any:
    generator.use(role, version)
    return [[drawn.ids for drawn in group] for group in generator.sample(PROMPTS, 2, sampling, SEEDS)]


@pytest.mark.parametrize("sampling", [WARM, Sampling(0.0, 1.0, 6), Sampling(0.7, 0.9, 6, (".",))])
def test_it_samples_what_the_engine_samples(server: VllmServer, base: SharedBase, sampling: Sampling) -> None:
    generator = generator_at(server, base, max_sampler_gap=0.05 if sampling.temperature == 1 else None)
    assert isinstance(generator, Generator)
    assert drawn_by(generator, "step-3", sampling) == engines(base, sampling)
    [name] = server.adapters
    assert name.startswith("policy-step-3-")
    body = next(body for body in server.bodies if body["prompt"] == PROMPTS[0] and body.get("seed", 1) == 1)
    assert (body["model"], body["temperature"], body["max_tokens"]) == (name, sampling.temperature, 6)
    assert ("seed" in body) == (sampling.temperature > 0)
    assert base.tokenizer.eos_token_id in body["stop_token_ids"]
    assert drawn_by(generator, "base", sampling, role=None) == engines(base, sampling, role=None)
    assert server.bodies[-1]["model"] == server.name


def test_each_version_gets_a_name_of_its_own_and_two_stay_loaded(
    server: VllmServer, base: SharedBase, tmp_path: Path
) -> None:
    generator = generator_at(server, base, adapters=str(tmp_path))
    for step in range(4):
        learn(base, step)
        assert drawn_by(generator, f"step-{step}") == engines(base)
    drawn_by(generator, "step-3")
    pushed = [line[1:] for line in server.posted if line[0] == "+"]
    one, two, three, four = pushed
    assert server.posted == [f"+{one}", f"+{two}", f"+{three}", f"-{one}", f"+{four}", f"-{two}"]
    assert len(set(pushed)) == 4
    assert {path.name for path in tmp_path.iterdir()} == set(server.adapters) == set(pushed[2:])


def test_a_retried_request_gives_one_sample(server: VllmServer, base: SharedBase) -> None:
    cut = {"choices": [{"logprobs": {"tokens": ["token_id:1"], "token_logprobs": [0.0]}, "finish_reason": "abort"}]}
    server.failures = [None, (503, {}), (500, {"error": {"message": "EngineDeadError"}}), (200, cut)]
    assert drawn_by(generator_at(server, base), "step-0") == engines(base)
    assert len(server.bodies) == 4 + 4


def test_a_restarted_server_gets_the_adapter_again(server: VllmServer, base: SharedBase) -> None:
    generator = generator_at(server, base)
    server.failures = [refusal(404, "The model `x` does not exist.", "NotFoundError")]
    assert drawn_by(generator, "step-0") == engines(base)  # lost while requests are under way
    server.restart()
    assert drawn_by(generator, "step-0") == engines(base)  # lost between two samplings
    [name] = server.adapters
    assert server.posted == [f"+{name}", f"-{name}", f"+{name}", f"+{name}"]
    other = generator_at(server, base)  # another run with equal weights, whose folder is another one
    assert drawn_by(other, "step-0") == engines(base)
    assert server.posted[-2:] == [f"-{name}", f"+{name}"]
    server.failures = [refusal(404, "The model `x` does not exist.", "NotFoundError")] * 100
    with pytest.raises(ConfigError, match="no such model"):
        drawn_by(other, "step-0")


@pytest.mark.parametrize(
    ("state", "options", "words"),
    [
        ({"runtime_loading": False}, {}, "environment variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"lora": False}, {}, "--enable-lora"),
        ({"max_lora_rank": 1}, {}, "--max-lora-rank 2 or more, or lower model.lora.r .*max_lora_rank 1"),
        ({"name": "org/other"}, {}, r"serves org/other, and model.base is .*model.generator.model"),
        ({}, {"model": "mine"}, "has no model.generator.model=mine; it serves"),
        ({}, {"adapters_on_server": "/nowhere/"}, "at /nowhere/policy.*: .*model.generator.adapters"),
        ({"shift": -0.2}, {}, r"are 0\.2 nats a token .*max_sampler_gap allows 0\.05.*model\.dtype"),
        (
            {},
            {"base_url": "http://127.0.0.1:9/v1"},
            "start it: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve",
        ),
    ],
)
def test_what_it_cannot_use_is_named_with_its_remedy(
    server: VllmServer, base: SharedBase, state: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    for key, value in state.items():
        setattr(server, key, value)
    with pytest.raises(ConfigError, match=words) as caught:
        drawn_by(generator_at(server, base, **options), "step-0")
    assert "\n" not in str(caught.value)


def test_other_processes_wait_for_the_one_that_pushes(
    server: VllmServer, base: SharedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = generator_at(server, base), generator_at(server, base)
    other._main = False
    monkeypatch.setattr("retro.retrospective.vllm._PAUSE_SECONDS", 0.01)
    first.use("policy", "step-0")
    first.sample([], 0, WARM, [])  # a process without prompts pushes for the others
    server.failures = [refusal(404, "The model `x` does not exist.", "NotFoundError")] * 9
    assert drawn_by(other, "step-0") == engines(base)
    assert len(server.bodies) == 4 + 9
    assert len(server.posted) == 1


def test_mistakes_in_prompts_are_the_engines(server: VllmServer, base: SharedBase) -> None:
    generator = generator_at(server, base)
    for prompt, words in (([], "empty prompt"), ([5] * 5000, "leaves no room")):
        with pytest.raises(ValueError, match=words):
            generator.sample([prompt], 1, WARM, [[0]])


def test_its_options_do_not_name_episodes_and_hold_no_password(make_config: Callable[..., RunConfig]) -> None:
    one, two = (make_config(model={"generator": {"kind": "vllm", "base_url": f"http://host-{n}/v1"}}) for n in range(2))
    assert episode_key(one, {}) == episode_key(two, {}) != episode_key(make_config(), {})
    with pytest.raises(ConfigError, match=r"model\.generator\.base_url.*OPENAI_API_KEY") as caught:
        parse_config({"model": {"generator": {"kind": "vllm", "base_url": "http://u:secret@h/v1"}}}, "test")
    assert "secret" not in str(caught.value)
