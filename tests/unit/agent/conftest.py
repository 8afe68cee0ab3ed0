"""An export, and the server of :mod:`tests.unit.agent.choices_server`, running."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retro.agent.records import BaseRecord, ExportRecord, RewardRecord
from retro.config import ModelSection
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from retro.models.loading import base_identity
from retro.wire import retrying
from tests.unit.agent.choices_server import NAME, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def served_export(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with a reward model that tells texts apart."""
    folder = tmp_path_factory.mktemp("exports") / "export"
    section = ModelSection(
        base=str(tiny_model_dir), max_prompt_tokens=400, max_new_tokens=8, temperature=0.7, top_p=0.9, lora={"r": 2}
    )
    base = SharedBase.load(section, torch.device("cpu"))
    for role, place in (("policy", "adapter"), ("reward", "reward")):
        base.add_role(role, section.lora, seed=2)
        base.save_role(role, folder / place)
    save_head(ScalarHead(base.hidden_size, seed=1), folder / "reward" / "head.safetensors")
    record = ExportRecord(
        base=BaseRecord(name=section.base, identity=base_identity(section.base)),
        prompts="household",
        served_name=NAME,
        model=section,
        reward=RewardRecord(mean=0.0, std=1.0, loss="bradley_terry"),
    )
    (folder / "retro.json").write_text(record.model_dump_json())
    return folder


Altered = Callable[..., Path]


@pytest.fixture
def altered(served_export: Path, tmp_path: Path) -> Altered:
    """Makes a copy of the export whose record says something else."""

    def alter(**changes: Any) -> Path:
        folder = tmp_path / "altered"
        shutil.copytree(served_export, folder)
        record = ExportRecord.read(served_export).model_copy(update=changes)
        (folder / "retro.json").write_text(record.model_dump_json())
        return folder

    return alter
