"""TRL's PPO (``trl.experimental.ppo.PPOTrainer``) on the work that ``benchmarks/ppo.py trl`` gives, lap by lap.

Runs in its own environment (trl-ppo.txt): ``python trl_ppo.py WORK.json``. An update begins when the benchmark says so.

TRL's settings here are the cheapest that it supports and that still are the same work:

- policy: the base with a LoRA adapter; reference: the same model with the adapter off (no model of its own);
- value model: its trunk frozen, only its head learns, so that no gradient goes through the trunk (the project's own
  value head reads hidden states and does not shape them either);
- no gradient checkpointing, float32, no checkpoint files, no reports, no sample generations.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from protocol import Conversation, forget_peak, resident_bytes, started
from torch.utils.data import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from transformers.utils import logging as transformers_logging
from trl.experimental.ppo import PPOConfig, PPOTrainer
from trl.experimental.ppo.ppo_trainer import forward, get_reward, selective_log_softmax

UPDATES = 64
"""More than will be asked for."""
CHECKED_AT_ONCE = 4


class InOrder(Dataset[dict[str, list[int]]]):
    """Hands out the prompts in their order, again and again, whatever index is asked for: the trainer shuffles, and
    each of its batches is to be the whole work."""

    def __init__(self, prompts: list[list[int]]) -> None:
        self._prompts, self._given = prompts, 0

    def __len__(self) -> int:
        return len(self._prompts) * UPDATES

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        prompt = self._prompts[self._given % len(self._prompts)]
        self._given += 1
        return {"input_ids": prompt}


class Laps(TrainerCallback):
    """Holds the trainer between its updates until the benchmark asks for the next."""

    def __init__(self, conversation: Conversation, before_models: int) -> None:
        self._conversation, self._before = conversation, before_models
        self._lap: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._next()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._conversation.say({**self._lap(), "samples": args.batch_size})
        self._next()

    def _next(self) -> None:
        if self._conversation.hear()["do"] == "quit":
            peak = resident_bytes(peak=True)
            self._conversation.say({"peak_bytes": peak, "bytes_before_models": self._before})
            sys.exit(0)
        self._lap = started()


def make_trainer(work: dict[str, Any], laps: Laps) -> PPOTrainer:
    folder = Path(work["folder"])
    # `<pad>` and `<end>` lie beyond the model's vocabulary: neither can be drawn, so no response ends early.
    tokenizer = AutoTokenizer.from_pretrained(folder / "base", pad_token="<pad>", padding_side="left")
    samples = len(work["prompts"]) * work["group"]
    arguments = PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=work["microbatch"],
        gradient_accumulation_steps=samples // work["microbatch"],
        local_rollout_forward_batch_size=work["rollout_batch"],
        num_ppo_epochs=work["epochs"],
        num_mini_batches=1,
        response_length=work["response_tokens"],
        temperature=1.0,
        stop_token=None,
        learning_rate=work["learning_rate"],
        total_episodes=samples * UPDATES,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=work["seed"],
    )
    policy = PeftModel.from_pretrained(
        _load(AutoModelForCausalLM, folder / "base"), folder / "policy", is_trainable=True
    )
    value = _load(AutoModelForSequenceClassification, folder / "value")
    value.model.requires_grad_(False)
    return PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=_load(AutoModelForSequenceClassification, folder / "reward_model"),
        value_model=value,
        train_dataset=InOrder([prompt for prompt in work["prompts"] for _ in range(work["group"])]),
        callbacks=[laps],
    )


def _load(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def check(trainer: PPOTrainer, work: dict[str, Any]) -> dict[str, Any]:
    """What TRL's own functions say about the given responses, in the order of the prompts."""
    pad = trainer.processing_class.pad_token_id
    rows = [(prompt, ids) for prompt, group in zip(work["prompts"], work["responses"], strict=True) for ids in group]
    width = max(len(prompt) for prompt, _ in rows)
    found: dict[str, list[Any]] = {"log_probs": [], "reference_log_probs": [], "values": [], "scores": []}
    for start in range(0, len(rows), CHECKED_AT_ONCE):
        chosen = rows[start : start + CHECKED_AT_ONCE]
        both = torch.tensor([[pad] * (width - len(prompt)) + prompt + ids for prompt, ids in chosen])  # (b, T)
        responses = both[:, width:]

        def log_probs(both: torch.Tensor = both, responses: torch.Tensor = responses) -> list[list[float]]:
            logits = forward(trainer.model.policy, both, pad).logits[:, width - 1 : -1]
            return selective_log_softmax(logits, responses).tolist()

        found["log_probs"] += log_probs()
        with trainer.null_ref_context():
            found["reference_log_probs"] += log_probs()
        values, _, _ = get_reward(trainer.value_model, both, pad, width)
        found["values"] += values[:, width - 1 : -1, 0].tolist()
        _, scores, _ = get_reward(trainer.reward_model, both, pad, width)
        found["scores"] += scores.tolist()
    return found


def main() -> None:
    conversation = Conversation()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    forget_peak()
    before = resident_bytes()
    trainer = make_trainer(work, Laps(conversation, before))
    conversation.say({"versions": versions(), "threads": torch.get_num_threads()})
    if work["check"]:
        conversation.hear()
        conversation.say(check(trainer, work))
        forget_peak()
    trainer.train()


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("trl", "torch", "transformers", "peft", "accelerate")}


if __name__ == "__main__":
    main()
