"""A base in pieces, on two processes of their own (gloo): equal to a whole one, whatever passes each process makes."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from retro.config import ConfigError, LoraSection, ModelSection
from retro.models.adapters import RoleError, SharedBase
from retro.models.backbone import hidden_states
from retro.models.generation import Engine
from retro.models.sharding import launched_pieces
from retro.types import Sampling
from tests.pipeline import forks
from tests.pipeline.running import environment

CPU = torch.device("cpu")
PROCESSES = 2
LENGTHS = [[5, 9, 3], [7]]
"""Of each process: the sequences that it learns from, one a pass; the second one has fewer."""
PROMPTS = [[[5, 6, 7], [8, 9]], []]
"""Of each process: what it continues; the second one continues nothing."""


def make_base(model: Path, checkpointing: bool) -> SharedBase:
    """A whole base with a trained role and a frozen one, neither of them nothing."""
    base = SharedBase.load(ModelSection(base=str(model), gradient_checkpointing=checkpointing), "cpu")
    for seed, role in enumerate(("policy", "reward")):
        base.add_role(role, LoraSection(r=2, alpha=4), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in base.role_parameters(role).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    with TemporaryDirectory() as folder:
        base.save_role("reward", Path(folder))
        base.load_role("reward", Path(folder), trainable=False)  # frozen from here on
    return base


def sequence(length: int) -> Tensor:
    return (torch.arange(length) * 7 % 31)[None]  # (1, T)


def learn(base: SharedBase, lengths: list[int]) -> None:
    """One pass a sequence, forward and backward; the gradients add up in the parameters."""
    for length in lengths:
        hidden = hidden_states(base.model, input_ids=sequence(length), use_cache=False)
        hidden.square().mean().backward()


def gradients(base: SharedBase) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(value) if value.grad is None else value.grad.clone()
        for name, value in base.role_parameters("policy").items()
    }


def work(base: SharedBase, rank: int | None) -> dict[str, Any]:
    """What a process makes of its share; without ``rank``: one process, of all."""
    ranks = range(PROCESSES) if rank is None else [rank]
    engine = Engine(base.model, base.tokenizer)
    with base.role("policy"):
        prompts = [prompt for own in ranks for prompt in PROMPTS[own]]
        seeds = [[place, place + 1] for place in range(len(prompts))]
        written = engine.sample(prompts, 2, Sampling(1.0, 1.0, 12), seeds) if prompts else []
    with base.role("policy", train=True):
        learn(base, [length for own in ranks for length in LENGTHS[own]])
        base.finish_passes()
        summed = gradients(base)
        if rank is not None:
            for value in summed.values():
                distributed.all_reduce(value)
        learn(base, [4])  # a second minibatch, of one pass each
    with base.role("reward"):
        length = 6 if rank in (1, None) else 2
        read = hidden_states(base.model, input_ids=sequence(length), use_cache=False)
    return {"written": [[(one.ids, one.log_probs) for one in group] for group in written], "sum": summed, "read": read}


def process(rank: int, model: Path, folder: Path) -> None:
    """A process's life: join, work without and with checkpointing, and leave what it found in a folder for each."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(minutes=10),
    )
    for checkpointing in (False, True):
        in_pieces(rank, make_base(model, checkpointing), folder / str(checkpointing))
    distributed.destroy_process_group()


def in_pieces(rank: int, base: SharedBase, folder: Path) -> None:
    """Cut a base, work with it, and leave what was found in ``folder``."""
    folder.mkdir(exist_ok=True)
    base.shard(CPU)
    found = work(base, rank)
    layers = cast(Any, base.model.get_base_model()).model.layers
    kept = {name: value for name, value in layers.named_parameters() if "lora_" not in name}
    assert all(isinstance(value, DTensor) for value in kept.values())
    found["own"] = sum(cast(DTensor, value).to_local().numel() for value in kept.values())
    found["all"] = sum(value.numel() for value in kept.values())
    found["whole"] = [name for name, value in base.model.named_parameters() if not isinstance(value, DTensor)]
    with pytest.raises(RoleError, match="base in pieces"):
        base.add_role("late", LoraSection(), 0)
    base.save_role("policy", folder / f"adapter-{rank}")
    with base.role("policy", train=True):
        hidden_states(base.model, input_ids=sequence(3), use_cache=False)
        with pytest.raises(RuntimeError, match="launch with whole bases"):
            hidden_states(base.model, input_ids=sequence(3), use_cache=False)
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def pieces(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: forks, but not of this process, whose threads and state a fork would share."""
    folder = tmp_path_factory.mktemp("pieces")
    python, places = str(forks.stand_in()), [str(tiny_model_dir), str(folder)]
    both = [
        subprocess.Popen([python, __file__, str(rank), *places], env=environment(), stderr=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    said = [one.communicate()[1] for one in both]
    assert [one.returncode for one in both] == [0] * PROCESSES, "\n".join(said)
    return folder


@pytest.mark.parametrize("checkpointing", [False, True])
def test_pieces_compute_what_the_whole_computes(
    pieces: Path, tiny_model_dir: Path, tmp_path: Path, checkpointing: bool
) -> None:
    left = pieces / str(checkpointing)
    first, second = (torch.load(left / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES))
    base = make_base(tiny_model_dir, checkpointing)
    whole = work(base, None)

    assert second["written"] == []
    for group, expected in zip(first["written"], whole["written"], strict=True):
        for (ids, log_probs), (right_ids, right_log_probs) in zip(group, expected, strict=True):
            assert ids == right_ids
            assert log_probs == pytest.approx(right_log_probs, abs=1e-5)
    for found in (first, second):
        assert found["sum"].keys() == whole["sum"].keys()
        for name, value in found["sum"].items():
            assert value.abs().max() > 0
            torch.testing.assert_close(value, whole["sum"][name], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(second["read"], whole["read"])

    for found in (first, second):
        assert found["all"] == first["own"] + second["own"]
        assert abs(found["own"] / found["all"] - 0.5) < 0.01
        assert any("embed_tokens" in name for name in found["whole"])
        assert sum("lora_" in name for name in found["whole"]) == 2 * len(base.role_parameters("policy"))
    base.save_role("policy", tmp_path / "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    for name in names:
        assert (left / "adapter-0" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment as accelerate's launch sets it, without anything set."""
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_what_a_launch_asks_for(launch: pytest.MonkeyPatch) -> None:
    section = ModelSection(base="base")
    assert launched_pieces("ppo", section) is None
    assert launched_pieces("ppo", ModelSection(base="base", quantization="nf4")) is None
    for name, value in FSDP2.items():
        launch.setenv(name, value)
    assert launched_pieces("ppo", section) == "fsdp2"
    launch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert launched_pieces("sft", section, own_loop=False) == "fsdp2"


def test_transformers_trainer_takes_deepspeed(launch: pytest.MonkeyPatch) -> None:
    for name, value in DEEPSPEED.items():
        launch.setenv(name, value)
    assert launched_pieces("sft", ModelSection(base="base"), own_loop=False) == "deepspeed"


@pytest.mark.parametrize(
    ("environment", "quantization", "message"),
    [
        (DEEPSPEED, "none", "ppo does not run under DeepSpeed.*fsdp2.yaml"),
        (DEEPSPEED, "nf4", "multi-gpu.yaml"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "none", "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "none", "fsdp_version: 2"),
        (FSDP2, "nf4", "multi-gpu.yaml"),
        (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, "none", "fsdp_offload_params: false"),
        (FSDP2 | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, "none", "fsdp_reshard_after_forward: true"),
        (FSDP2 | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "True"}, "none", "fsdp_cpu_ram_efficient_loading: false"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    launch: pytest.MonkeyPatch, environment: dict[str, str], quantization: Any, message: str
) -> None:
    for name, value in environment.items():
        launch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        launched_pieces("ppo", ModelSection(base="base", quantization=quantization))


@pytest.mark.parametrize(
    ("layout", "pieces"),
    [
        ("cpu-2", None),
        ("multi-gpu", None),
        ("fsdp2", "fsdp2"),
        ("fsdp2-cpu-2", "fsdp2"),
        ("deepspeed-zero3", "deepspeed"),
    ],
)
def test_what_the_shipped_layouts_ask_for(launch: pytest.MonkeyPatch, layout: str, pieces: str | None) -> None:
    file = Path(__file__).parents[3] / "configs" / "accelerate" / f"{layout}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    if pieces == "deepspeed":
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(arguments)[1]
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    else:
        environment = prepare_multi_gpu_env(arguments)
    for name, value in environment.items():
        launch.setenv(name, value)
    own_loop = pieces != "deepspeed"
    assert launched_pieces("sft", ModelSection(base="base"), own_loop) == pieces


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
