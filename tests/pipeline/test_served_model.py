"""The retrospective model behind ``transformers serve``: a real server with a real adapter, against the local one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from retro import RetroAgent, RetrospectiveModel
from retro.actors.local import LocalActor, LocalOptions
from retro.agent.model import Reflected
from retro.agent.records import BaseRecord, ExportRecord, RewardRecord
from retro.config import LoraSection, ModelSection
from retro.envs import make_taskset
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, save_head
from retro.models.loading import base_identity
from retro.prompts import load_prompts
from retro.retrospective.policy import Policy
from retro.types import Split
from tests.pipeline.running import ROOT, retro
from tests.servers.transformers_serve import missing_packages, transformers_serve

QUICKSTART = ROOT / "data" / "quickstart"
TASKSET = make_taskset("household")
_CHAT = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The same tokens as a completion's, so that one served model answers both."""


@dataclass(frozen=True)
class Served:
    url: str
    model: str
    exports: dict[str, Path]
    """By endpoint: one on the base as it is, one on the base with a chat template."""

    def local(self, endpoint: str) -> RetrospectiveModel:
        return RetrospectiveModel.load(self.exports[endpoint], device="cpu")

    def remote(self, endpoint: str, **options: Any) -> RetrospectiveModel:
        export = self.exports[endpoint]
        return RetrospectiveModel.load(export, device="cpu", server=self.url, server_model=self.model, **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``transformers serve`` with the quickstart's retrospective base and an adapter on it.

    It takes an adapter as part of a whole model: the base's files and the adapter's in one folder. It does not draw, as
    the base's ``generation_config.json`` does not say so; the exports' temperature leaves nothing to draw either.
    """
    if missing := missing_packages():
        pytest.skip(f"no {' and '.join(missing)}: pip install 'transformers[serving]'")
    folder = tmp_path_factory.mktemp("served")
    chat = folder / "chat-base"
    shutil.copytree(QUICKSTART / "retrospective", chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)
    tokenizer.chat_template = _CHAT
    tokenizer.save_pretrained(chat)
    exports = {
        "completions": write_export(QUICKSTART / "retrospective", folder / "completions"),
        "chat": write_export(chat, folder / "chat"),
    }
    whole = folder / "whole"
    shutil.copytree(chat, whole)
    shutil.copytree(exports["chat"] / "adapter", whole, dirs_exist_ok=True)
    with transformers_serve(whole, folder / "serve.log") as url:
        yield Served(url + "/v1", str(whole), exports)


def write_export(base: Path, folder: Path) -> Path:
    """An export whose adapter and reward model are random, but far from doing nothing."""
    section = ModelSection(base=str(base), max_prompt_tokens=380, max_new_tokens=16, temperature=1e-4, lora={"r": 4})
    shared = SharedBase.load(section, torch.device("cpu"))
    for seed, (role, place) in enumerate((("policy", "adapter"), ("reward", "reward"))):
        shared.add_role(role, LoraSection(r=4), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in shared.model.named_parameters():
                if f"lora_B.{role}" in name:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        shared.save_role(role, folder / place)
    save_head(ScalarHead(shared.hidden_size, seed=1), folder / "reward" / "head.safetensors")
    record = ExportRecord(
        base=BaseRecord(name=section.base, identity=base_identity(section.base)),
        prompts="household",
        served_name="tiny-0123abcd",
        chat=bool(shared.tokenizer.chat_template),
        model=section,
        reward=RewardRecord(mean=0.0, std=1.0, loss="bradley_terry"),
    )
    (folder / "retro.json").write_text(record.model_dump_json(), encoding="utf-8")
    return folder


def trajectory(number: int) -> dict[str, Any]:
    """A short walk through a room of the household."""
    task = TASKSET.tasks(Split.TEST, 1, number)[0]
    room = TASKSET.make(task)
    opening, _ = room.reset()
    steps = [{"action": action, "observation": room.step(action)[0]} for action in ("look", "inventory", "go to bed 1")]
    return {"opening": opening, "steps": steps, "memory": ["look in drawer 1 ."]}


def assert_same(there: Reflected, here: Reflected) -> None:
    for theirs, ours in zip(there.candidates, here.candidates, strict=True):
        assert (theirs.text, theirs.finish_reason, theirs.index) == (ours.text, ours.finish_reason, ours.index)
        assert theirs.source == ours.source
        assert theirs.usage == ours.usage
        assert theirs.score == pytest.approx(ours.score, abs=1e-4)
    assert (there.text, there.score) == (here.text, pytest.approx(here.score, abs=1e-4))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_served_model_reflects_as_the_local_one_does(served: Served, endpoint: str) -> None:
    here, there, bare = served.local(endpoint), served.remote(endpoint), without_adapter(served.exports[endpoint])
    texts = set()
    for number in range(4):
        ours = here.reflect(trajectory(number), n=3)
        assert_same(there.reflect(trajectory(number), n=3), ours)
        assert ours.text != bare.reflect(trajectory(number)).text
        texts.add(ours.text)
    assert len(texts) > 1


def without_adapter(export: Path) -> RetrospectiveModel:
    """The base alone."""
    section, prompts = ExportRecord.read(export).model, load_prompts("household")
    base = SharedBase.load(section, torch.device("cpu"))
    return RetrospectiveModel(Policy.on(base, None, prompts, section, "base"), prompts)


def test_an_agent_plays_with_a_served_model(served: Served) -> None:
    actor = LocalActor.from_options(LocalOptions(model=str(QUICKSTART / "actor"), max_tokens=12), "cpu")
    tasks = TASKSET.tasks(Split.TEST, 6)

    def play(model: RetrospectiveModel) -> list[Any]:
        agent = RetroAgent(actor, TASKSET, model, attempts=2, n=2)
        return [
            [(episode.id, episode.trajectory, episode.reflection and episode.reflection.text) for episode in episodes]
            for episodes in agent.run_all(tasks)
        ]

    played = play(served.remote("completions"))
    assert any(len(episodes) == 2 for episodes in played)
    assert played == play(served.local("completions"))


def test_the_command_reflects_with_a_server(served: Served) -> None:
    command = ("reflect", str(served.exports["completions"]), "--server", served.url)
    document = json.dumps(trajectory(0))
    done = retro(*command, "--server-model", served.model, "-n", "2", "--json", stdin=document)
    reflected, here = json.loads(done.stdout), served.local("completions").reflect(trajectory(0), n=2)
    assert [candidate["text"] for candidate in reflected["candidates"]] == [item.text for item in here.candidates]
    assert reflected["score"] == pytest.approx(here.score, abs=1e-4)
