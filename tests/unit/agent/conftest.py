"""An export, and the server of :mod:`tests.unit.agent.choices_server`, running."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retro.agent.records import ExportRecord
from retro.wire import retrying
from tests.tiny_export import write_export
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
    return write_export(tmp_path_factory.mktemp("exports") / "export", tiny_model_dir, NAME)


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
