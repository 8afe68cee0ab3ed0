"""The small parts of the PPO stage: schedule, order of contexts, rewards, checkpoints, records."""

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
from retro.training.examples import Encoder, without_too_long
from retro.training.ppo import contexts_of_step, learning_rate_factor
from retro.training.ppo_checkpoint import PpoState, load_state, save_state
from retro.training.ppo_records import cut_samples, mean_metrics, record, write_rollouts
from retro.training.ppo_rewards import Response, ScoreTransform, Worth, combine
from retro.training.ppo_sampler import SamplerGapError, require_small_gap
from retro.types import Episode, Reflection, Split, StopReason, Task, Trajectory


def test_contexts_whose_prompt_does_not_fit_are_left_out_and_counted(
    make_config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(model={"max_prompt_tokens": 60})
    encoder = Encoder(load_tokenizer(config.model), config)
    short = Context(episode(0.3), ())
    long = Context(replace(episode(0.3), id="long", trajectory=Trajectory("look . " * 100)), ())
    assert without_too_long([long, short, long], encoder, "episodes") == [short]
    assert "2 of 3 episodes are left out: episode long: " in caplog.text
    assert "raise model.max_prompt_tokens (now 60" in caplog.text
    assert without_too_long([long], encoder, "episodes") == []
    rated = [RatedReflection(context, Reflection("look", "base"), 1.0) for context in (short, long)]
    assert without_too_long(rated, encoder, "reflections") == rated[:1]


def episode(return_: float, stop: StopReason = StopReason.HORIZON) -> Episode:
    return Episode("e", Task("household", "t", Split.TRAIN), 0, Trajectory("Open."), return_, False, stop)


def response(finish_reason: str = "stop") -> Response:
    return Response(0, 0, (5, 6, 1), (-1.0, -1.0, -0.1), "look in drawer 1", finish_reason)  # type: ignore[arg-type]


CONTEXT = Context(episode(0.3), ())
SIGMOID = ScoreTransform("sigmoid")


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


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward": "environment"}, 0.7),
        ({"reward": "model"}, 0.5),
        (
            {"reward": [{"kind": "environment", "weight": 0.75}, {"kind": "model", "weight": 0.25}]},
            0.75 * 0.7 + 0.25 * 0.5,
        ),
    ],
)
def test_scores(changes: dict[str, object], expected: float) -> None:
    section = PpoOptions.model_validate({"missing_end_penalty": 0.4, **changes})
    for finish_reason, penalty in (("stop", 0.0), ("length", 0.4)):
        worth = combine(section, response(finish_reason), CONTEXT, episode(1.0), 0.0, SIGMOID)
        assert worth is not None
        assert worth.score == pytest.approx(expected - penalty)
        assert worth.gain == pytest.approx(0.7)


def test_a_gain_that_is_rounding_is_none() -> None:
    context = Context(episode(0.1 + 0.2), ())
    worth = combine(PpoOptions(), response(), context, episode(0.3), None, SIGMOID)
    assert worth is not None and worth.gain == 0.0 and worth.score == 0.0


def test_an_actors_error_is_no_return_of_zero() -> None:
    assert combine(PpoOptions(), response(), CONTEXT, episode(0.0, StopReason.ACTOR_ERROR), None, SIGMOID) is None


def test_score_transforms(tmp_path: Path) -> None:
    assert SIGMOID(0.0) == 0.5
    assert SIGMOID(800.0) == 1.0
    assert SIGMOID(-800.0) == 0.0
    with pytest.raises(ConfigError, match="run the reward stage"):
        ScoreTransform.load("standardise", tmp_path)
    (tmp_path / "reward.json").write_text(json.dumps({"score_mean": 2.0, "score_std": 4.0}))
    assert ScoreTransform.load("standardise", tmp_path)(8.0) == 1.5
    (tmp_path / "reward.json").write_text(json.dumps({"score_mean": 2.0, "score_std": 0.0}))
    with pytest.raises(ConfigError, match="tells no reflection from another"):
        ScoreTransform.load("standardise", tmp_path)


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
    state = PpoState(step=7, kl_coefficient=0.05, score_mean=0.1, score_std=1.3, best_step=5, best_return=0.625)
    for step in (7, 10, 9):
        with new_folder(tmp_path / f"checkpoint-{step}") as folder:
            save_state(state, folder)
            assert not (tmp_path / f"checkpoint-{step}").exists()
    assert [step for step, _ in checkpoints(tmp_path)] == [7, 9, 10]
    assert load_state(tmp_path / "checkpoint-9") == state
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "checkpoint-9") as folder:
        save_state(PpoState(99, 0, 0, 0), folder)
        raise KeyboardInterrupt
    assert load_state(tmp_path / "checkpoint-9") == state  # a folder that was being written is not there
    prune(tmp_path, keep=2)
    assert [step for step, _ in checkpoints(tmp_path)] == [9, 10]


def test_records(tmp_path: Path) -> None:
    rows = [
        record(3, CONTEXT, response(), Worth(0.7, gain=0.7, retry_return=1.0, retry_success=True), 0.0),
        record(3, CONTEXT, response("length"), Worth(-0.3, gain=0.1, retry_return=0.4, retry_success=False), 0.2),
    ]
    metrics = mean_metrics(rows)
    assert metrics["score"] == pytest.approx(0.2)
    assert metrics["score_std"] == pytest.approx(0.5)
    assert metrics["retry_success"] == metrics["missing_end"] == 0.5
    assert metrics["sampler_gap"] == pytest.approx(0.1)
    assert "model_score" not in metrics
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
