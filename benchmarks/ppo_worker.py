"""The project's own PPO step in a process of its own, lap by lap: ``python benchmarks/ppo_worker.py WORK.json``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.peers.protocol import Conversation, forget_peak, resident_bytes, started
from benchmarks.pipeline_ppo import score_and_learn, unchanged
from benchmarks.pipeline_shared_base import SharedBaseSide
from benchmarks.pipeline_timing import Stopwatch
from benchmarks.pipeline_work import Work
from benchmarks.ppo_models import TokenContext, TokenModels, token_contexts
from retro.artifacts import versions
from retro.config import RunConfig
from retro.training.policy.groups import Response


def make_step(side: SharedBaseSide, config: RunConfig, contexts: list[TokenContext], number: int) -> dict[str, Any]:
    """Sampling, scoring by reward model, reference and value, and the update; the time of all, and of each."""
    watch, whole = Stopwatch(), started()
    with watch.lap("sample", config.ppo.contexts * config.ppo.group):
        responses = side.draw(contexts, number)
    score_and_learn(side, Work(config, contexts, responses), watch)
    tokens = sum(len(response.ids) for response in responses)
    phases = {name: asdict(lap) for name, lap in watch.phases.items()}
    return {**whole(), "samples": len(responses), "response_tokens": tokens, "phases": phases}


def check(
    side: SharedBaseSide, config: RunConfig, contexts: list[TokenContext], given: list[list[list[int]]]
) -> dict[str, Any]:
    """What this side says about given responses, and the means of an update on them, which is undone."""
    responses = [
        Response(place, index, tuple(ids), (0.0,) * len(ids), " ".join(f"w{token}" for token in ids), "length")
        for place, group in enumerate(given)
        for index, ids in enumerate(group)
    ]
    with unchanged(side.trainables):
        step = score_and_learn(side, Work(config, contexts, responses), Stopwatch())
    return {
        "log_probs": step.rollout.log_probs.tolist(),
        "reference_log_probs": step.rollout.reference_log_probs.tolist(),
        "values": step.rollout.values.tolist(),
        "scores": list(step.raw_scores),
        "metrics": dict(step.metrics),
        "forward_tokens": step.forward_tokens,
    }


def main() -> None:
    conversation = Conversation()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    forget_peak()
    before = resident_bytes()
    config = RunConfig.model_validate(work["config"])
    contexts = token_contexts(work["prompts"])
    side = SharedBaseSide.load(config, Path(work["folder"]), TokenModels, work["copies"])
    conversation.say({"versions": versions(), "threads": torch.get_num_threads()})
    while (request := conversation.hear())["do"] != "quit":
        if request["do"] == "check":
            conversation.say(check(side, config, contexts, work["responses"]))
            forget_peak()
        else:
            conversation.say(make_step(side, config, contexts, request["number"]))
    conversation.say({"peak_bytes": resident_bytes(peak=True), "bytes_before_models": before})


if __name__ == "__main__":
    main()
