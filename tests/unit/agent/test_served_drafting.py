"""Reflections that a server writes sentence by sentence or rewrites: what it is asked, and what it cannot do."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from retro.agent.loading import load_export
from retro.config import ConfigError
from retro.retrospective.drafting import Draft
from retro.retrospective.samplers.backtrack import Backtrack, BacktrackOptions
from retro.retrospective.samplers.refine import Refine
from retro.retrospective.served import ServedPolicy
from retro.types import Episode, ReflectionRequest, Split, StopReason, Task, Trajectory, Usage
from tests.unit.agent.choices_server import Server

EPISODE = Episode("e", Task("household", "1", Split.TEST), 0, Trajectory("look ."), 0.0, False, StopReason.FAILURE)


def replied(server: Server, *texts: tuple[str, str]) -> None:
    choices = [{"text": text, "finish_reason": reason} for text, reason in texts]
    usage = {"prompt_tokens": 50, "completion_tokens": 9}
    server.reply = (200, json.dumps({"choices": choices, "usage": usage}).encode())


def test_a_request_ends_with_the_draft_and_the_first_sentence_of_each_answer_is_kept(
    served_export: Path, server: Server
) -> None:
    policy = load_export(served_export, None, "cpu", None, server.url).reflector
    assert isinstance(policy, ServedPolicy)

    async def sentences() -> tuple[list[Draft], Usage, list[Draft]]:
        with policy.drafting(ReflectionRequest(EPISODE)) as drafting:
            replied(server, (" look . not 3 .", "stop"), (" look", "stop"), (" not not not not not not not", "length"))
            drafts, usage = await drafting.extend(Draft(), 3, seed=1)
            replied(server, ("", "stop"))
            return drafts, usage, (await drafting.extend(drafts[0], 1, seed=2))[0]

    drafts, usage, longer = asyncio.run(sentences())
    assert [(draft.text, draft.finish_reason) for draft in drafts] == [
        (" look .", None),
        (" look", "stop"),
        (" not not not not not not not", "length"),
    ]
    assert [(draft.text, draft.finish_reason) for draft in longer] == [(" look .", "stop")]
    assert usage == Usage(50, 9), "all that the server read and wrote"
    first, second = server.asked
    assert second["prompt"] == first["prompt"] + " look ."
    assert (first["n"], first["max_tokens"], second["max_tokens"]) == (3, 8, 6)
    assert "stop" not in first


def test_a_walk_with_the_reward_model_here(served_export: Path, server: Server) -> None:
    loaded = load_export(served_export, None, "cpu", None, server.url)
    assert isinstance(loaded.reflector, ServedPolicy) and loaded.scorer is not None
    sampler = Backtrack(loaded.reflector, loaded.scorer, BacktrackOptions(drafts=3, expansions=5))
    [reflection] = asyncio.run(sampler.reflect(ReflectionRequest(EPISODE)))
    assert reflection.text.startswith("not ")
    assert reflection.score is not None
    assert reflection.usage.prompt_tokens == 77 * len(server.asked)
    assert [reflection] == asyncio.run(sampler.reflect(ReflectionRequest(EPISODE)))


def test_a_chat_rewrites_but_cannot_continue_a_text(
    served_export: Path, server: Server, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = tmp_path / "chat"
    shutil.copytree(tiny_model_dir, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(base)
    loaded = load_export(served_export, str(base), "cpu", None, server.url)
    assert isinstance(loaded.reflector, ServedPolicy) and loaded.scorer is not None
    sampler = Backtrack(loaded.reflector, loaded.scorer)
    with pytest.raises(ConfigError, match="asked in a chat"):
        asyncio.run(sampler.reflect(ReflectionRequest(EPISODE)))
    assert not server.asked
    kept = asyncio.run(Refine(loaded.reflector, None, 2).reflect(ReflectionRequest(EPISODE)))
    asked = [body["messages"][0]["content"] for body in server.asked]
    written = [f"not {body['seed'] % 8}" for body in server.asked]
    assert asked[1:] == [f"note: {text}\n{asked[0]}" for text in written[:2]]
    assert [(one.text, one.usage) for one in kept] == [(written[2], Usage(3 * 77, 3 * 3))]
