"""A server on a real socket, in a thread, with the tiny model or with one that a test holds back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from retro import RetrospectiveModel
from retro.buffer import ReplayBuffer
from retro.models.rounds import Rounds
from retro.prompts import load_prompts
from retro.serving.app import make_app
from retro.serving.limits import Limits
from retro.serving.recorder import Recorder
from retro.serving.server import bind, make_server
from retro.serving.service import Service
from retro.types import Reflection, ReflectionRequest, Usage
from tests.tiny_export import write_export

KEY = "a-key-that-must-not-be-logged-5a1c"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrospectiveModel:
    folder = write_export(tmp_path_factory.mktemp("served") / "export", tiny_model_dir, "tiny-0")
    return RetrospectiveModel.load(folder, device="cpu")


@pytest.fixture(scope="session")
def client(model: RetrospectiveModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of one server for all tests, with the tiny model and a buffer."""
    with (
        ReplayBuffer(f"sqlite:///{tmp_path_factory.mktemp('recorded')}/buffer.sqlite") as buffer,
        running(recording(model, buffer), KEY) as client,
    ):
        yield client


def recording(model: RetrospectiveModel, buffer: ReplayBuffer) -> Service:
    """A service that records in ``buffer``."""
    limits = Limits(body_bytes=100_000, candidates=4)
    recorder = Recorder(buffer, model.prompts.of("").name, "tiny-0")
    return Service(model, "tiny-0", limits, candidates=3, max_tokens=8, recorder=recorder)


@contextmanager
def running(service: Service, key: str | None = None) -> Iterator[httpx.Client]:
    """A client of a server that runs within."""
    bound = bind("127.0.0.1", 0)
    server = make_server(make_app(service, key), service.limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        until(lambda: server.started)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", headers=headers, timeout=120, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def until(condition) -> None:
    """Wait for it; a minute is many times what it takes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class HeldReflector:
    """Answers batches as the engine does: in the model's thread, which it blocks until :attr:`free` is set."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        """Their sizes."""
        self.free = threading.Event()
        self.begun = threading.Event()
        self._rounds: Rounds[ReflectionRequest, list[Reflection]] = Rounds(self._answer)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        if request.episode.trajectory.opening == "break":
            raise RuntimeError(f"broken by {request.episode}")
        return await self._rounds.submit(request)

    def _answer(self, requests: Sequence[ReflectionRequest]) -> list[list[Reflection]]:
        self.batches.append(len(requests))
        self.begun.set()
        assert self.free.wait(60)
        return [[Reflection(f"on {one.episode.trajectory.opening}", "held", usage=Usage(3, 2))] for one in requests]


@pytest.fixture
def held() -> Iterator[HeldReflector]:
    reflector = HeldReflector()
    yield reflector
    reflector.free.set()


def held_service(held: HeldReflector, limits: Limits) -> Service:
    return Service(RetrospectiveModel(held, load_prompts("household")), "held", limits)


def about(opening: str, **keys: object) -> dict[str, object]:
    """A request's body."""
    steps = [{"action": "look", "observation": "nothing"}]
    return {"trajectory": {"opening": opening, "steps": steps, "return": 0.0}, **keys}
