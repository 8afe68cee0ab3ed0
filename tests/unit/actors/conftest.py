"""The server of :mod:`tests.unit.actors.api_server`, running, with a key set and hardly any pauses."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from retro.wire import retrying
from tests.unit.actors.api_server import SECRET, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
