"""The small parts of the policy stage: schedule, order of contexts, checkpoints, records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.buffer.views import Context, RatedReflection
from retro.config import ConfigError, RunConfig
from retro.models.loading import load_tokenizer
from retro.rl.options import PpoOptions
from retro.training.checkpoints import checkpoints, load_optimiser, new_folder, prune, save_optimiser
from retro.training.examples import encoder_of_run, without_too_long
from retro.training.policy.batch import SamplerGapError, require_small_gap
from retro.training.policy.groups import Group, Response
from retro.training.policy.guard import PolicyState, load_state, save_state
from retro.training.policy.loop import learning_rate_factor
from retro.training.policy.records import cut_samples, mean_metrics, rows_of, write_rollouts
from retro.training.policy.run import contexts_of_step
from retro.types import Episode, Reflection, Split, StopReason, Task, Trajectory


def test_contexts_whose_prompt_does_not_fit_are_left_out_and_counted(
    make_config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(model={"max_prompt_tokens": 60})
    encoder = encoder_of_run(load_tokenizer(config.model), config)
    short = Context(episode(0.3), ())
    long = Context(replace(episode(0.3), id="long", trajectory=Trajectory("look . " * 100)), ())
    assert list(without_too_long([long, short, long], encoder, "episodes")) == [short]
    assert "2 of 3 episodes are left out: episode long: " in caplog.text
    assert "raise model.max_prompt_tokens (now 60" in caplog.text
    assert list(without_too_long([long], encoder, "episodes")) == []
    rated = [RatedReflection(context, Reflection("look", "base"), 1.0) for context in (short, long)]
    assert list(without_too_long(rated, encoder, "reflections")) == rated[:1]


def episode(return_: float, stop: StopReason = StopReason.HORIZON) -> Episode:
    return Episode("e", Task("household", "t", Split.TRAIN), 0, Trajectory("Open."), return_, False, stop)


def response(finish_reason: str = "stop") -> Response:
    return Response(0, 0, (5, 6, 1), (-1.0, -1.0, -0.1), "look in drawer 1", finish_reason)  # type: ignore[arg-type]


CONTEXT = Context(episode(0.3), ())


@given(count=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_every_context_is_seen_once_an_epoch(count: int, size: int, seed: int) -> None:
    section = PpoOptions(contexts=size)
    steps = -(-3 * count // size)
    stream = [index for step in range(1, steps + 1) for index in contexts_of_step(count, section, seed, step)]
    for epoch in range(3):
        assert Counter(stream[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_the_schedule_is_a_function_of_the_step() -> None:
    section = PpoOptions(steps=4, schedule="linear", warmup_steps=2)
    assert [learning_rate_factor(section, step) for step in (1, 2, 3, 4)] == [0.5, 0.75, 0.5, 0.25]
    assert learning_rate_factor(PpoOptions(steps=4), 3) == 1.0


def test_the_optimisers_state_survives_exactly(tmp_path: Path) -> None:
    def fresh() -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
        names = {name: torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)) for name in ("a", "b")}
        return names, torch.optim.AdamW(names.values(), lr=0.1)

    def learn(names: dict[str, torch.nn.Parameter], optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for index, parameter in enumerate(names.values()):
                parameter.grad = torch.full_like(parameter, 0.3 * step - index)
            optimiser.step()

    names, optimiser = fresh()
    learn(names, optimiser, range(5))
    save_optimiser(optimiser, names, tmp_path)
    again, resumed = fresh()
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(names[name])
    load_optimiser(resumed, again, tmp_path)
    for pair in ((names, optimiser), (again, resumed)):
        learn(*pair, range(5, 8))
    for name, parameter in names.items():
        assert torch.equal(parameter, again[name])
    with pytest.raises(ConfigError, match="'b'"):
        load_optimiser(resumed, {"a": again["a"]}, tmp_path)


def test_state_and_folders(tmp_path: Path) -> None:
    state = PolicyState(step=7, algorithm={"kl_coefficient": 0.05}, best_step=5, best_return=0.625)
    for step in (7, 10, 9):
        with new_folder(tmp_path / f"checkpoint-{step}") as folder:
            save_state(state, folder)
            assert not (tmp_path / f"checkpoint-{step}").exists()
    assert [step for step, _ in checkpoints(tmp_path)] == [7, 9, 10]
    assert load_state(tmp_path / "checkpoint-9") == state
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "checkpoint-9") as folder:
        save_state(PolicyState(99), folder)
        raise KeyboardInterrupt
    assert load_state(tmp_path / "checkpoint-9") == state  # a folder that was being written is not there
    prune(tmp_path, keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [9, 10]


def test_records(tmp_path: Path) -> None:
    retries = (replace(episode(1.0), success=True), episode(0.4))
    group = Group(0, CONTEXT, (response(), response("length")), retries=retries, rewards=(0.7, -0.3))
    rows = rows_of(3, group, [0.0, 0.2])
    assert [row["gain"] for row in rows] == pytest.approx([0.7, 0.1])
    metrics = mean_metrics(rows)
    assert metrics["score"] == pytest.approx(0.2)
    assert metrics["score_std"] == pytest.approx(0.5)
    assert metrics["retry_success"] == metrics["missing_end"] == 0.5
    assert metrics["sampler_gap"] == pytest.approx(0.1)
    assert "model_score" not in metrics and "control_return" not in metrics
    assert "sampler_gap" not in mean_metrics(rows_of(3, group, [None, None]))
    write_rollouts(tmp_path, 3, rows)
    read = [json.loads(line) for line in (tmp_path / "rollouts" / "step-3.jsonl").read_text().splitlines()]
    assert [row["reflection"] for row in read] == ["look in drawer 1"] * 2


def test_samples_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_samples(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_sampler_is_stopped_by_the_mean_over_the_tokens_of_all_processes() -> None:
    def beside(gap: float, tokens: int):  # type: ignore[no-untyped-def]
        """What an all-reduce adds: another process, with that gap on each of so many tokens."""
        return lambda own: own + torch.tensor([gap * tokens, float(tokens)])

    one = [response()]  # three tokens
    require_small_gap([0.1], one, 0.05, 1, beside(0.0, 6))  # 0.3 / 9
    with pytest.raises(SamplerGapError, match=r"^ppo: in step 4 the sampler's log-probabilities are 0\.1 nats a token"):
        require_small_gap([0.0], one, 0.05, 4, beside(0.2, 3))  # 0.6 / 6: this process stops with the other
    with pytest.raises(SamplerGapError, match="nan nats a token"):
        require_small_gap([float("nan")], one, 0.05, 1)
    require_small_gap([9.0], one, None, 1)
    require_small_gap([], [], 0.05, 1)
