"""The number of threads for tiny models, and who is left alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from retro.actors.local import LocalOptions
from retro.actors.openai import OpenAIOptions
from retro.config import ActorSection, RunConfig, TrainedModelSection
from retro.models import threads
from retro.models.threads import CHOSEN_BY, TINY_BYTES, limit_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(folder: Path, size: int) -> str:
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return str(folder)


def config(base: str, actor: ActorSection) -> RunConfig:
    return RunConfig(model=TrainedModelSection(base=base), actor=actor)


def test_tiny_models_are_computed_with_one_thread(tmp_path: Path) -> None:
    tiny = model(tmp_path / "tiny", TINY_BYTES)
    limit_threads(config(tiny, LocalOptions(model=tiny)), CPU)
    assert torch.get_num_threads() == 1


def test_of_a_served_actor_the_size_does_not_matter(tmp_path: Path) -> None:
    tiny = model(tmp_path / "tiny", 1)
    limit_threads(config(tiny, OpenAIOptions(model="m", base_url="http://127.0.0.1:1/v1")), CPU)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("which", ["base", "actor", "hub"])
def test_one_large_model_is_reason_enough_for_more(tmp_path: Path, which: str) -> None:
    tiny, large = model(tmp_path / "tiny", 1), model(tmp_path / "large", TINY_BYTES + 1)
    base = {"base": large, "actor": tiny, "hub": "somebody/7b"}[which]
    limit_threads(config(base, LocalOptions(model=large if which == "actor" else tiny)), CPU)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", CHOSEN_BY)
def test_the_users_number_is_kept(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    tiny = model(tmp_path / "tiny", 1)
    limit_threads(config(tiny, LocalOptions(model=tiny)), CPU)
    assert torch.get_num_threads() == 2


def test_a_gpu_computes_as_it_did(tmp_path: Path) -> None:
    tiny = model(tmp_path / "tiny", 1)
    limit_threads(config(tiny, LocalOptions(model=tiny)), torch.device("cuda"))
    assert torch.get_num_threads() == 2


def test_the_quickstarts_models_are_tiny() -> None:
    folder = Path(__file__).parents[3] / "data" / "quickstart"
    assert all(0 < threads._weight_bytes(folder / name) <= TINY_BYTES for name in ("actor", "retrospective"))
