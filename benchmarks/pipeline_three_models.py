"""The naive PPO step: three whole models, and every response with a copy of its prompt of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.pipeline_sampling import Ids, generate
from benchmarks.pipeline_work import HEADS, Work
from retro.config import RunConfig
from retro.models.heads import ScalarHead, load_head
from retro.models.loading import load_base, load_tokenizer
from retro.rl.experience import Outputs, Policy, Rollout
from retro.rl.gradients import Trainable
from retro.training.examples import encoder_of_run
from retro.types import Reflection, derive_seed

Rows = list[tuple[Ids, Ids]]
"""A prompt and a response each."""


class ThreeModels:
    """Policy (a base with a LoRA adapter), reference and reward model (two more bases, their adapters merged).

    A forward pass takes as many rows as the token budget allows, in their order, padded on the right to the longest of
    them, and computes the logits of every token. Loaded from the folder of
    :func:`benchmarks.pipeline_work.write_roles`.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._config = config
        self._tokenizer = load_tokenizer(config.model)
        self._encoder = encoder_of_run(self._tokenizer, config)
        self._prompts: dict[str, Ids] = {}
        self._policy = PeftModel.from_pretrained(load_base(config.model, "cpu"), folder / "policy", is_trainable=True)
        self._policy.eval()
        self._reference, self._reward = _merged(config, folder / "reference"), _merged(config, folder / "reward")
        self._value_head, self._reward_head = (load_head(folder / name) for name in HEADS)
        self._reward_head.requires_grad_(False)
        self.modules = [self._policy, self._reference, self._reward, self._value_head, self._reward_head]
        self.trainables = [
            Trainable("policy", [value for value in self._policy.parameters() if value.requires_grad]),
            Trainable("value", list(self._value_head.parameters())),
        ]

    def sample(self, work: Work, number: int) -> int:
        torch.manual_seed(derive_seed(self._config.seed, number))
        prompts = [self._prompt(work, place) for place in range(len(work.contexts))]
        longest = self._config.model.max_new_tokens
        groups = generate(self._policy, self._tokenizer, prompts, self._config.ppo.group, longest)
        return sum(len(answer) for group in groups for answer in group)

    @torch.no_grad()
    def scores(self, work: Work) -> list[float]:
        rows = [
            (
                self._prompt(work, r.slot),
                self._encoder.response(Reflection(r.text, "ppo", finish_reason=r.finish_reason)),
            )
            for r in work.responses
        ]
        scores: list[float] = []
        for chosen in self._microbatches(rows, range(len(rows))):
            ids, mask = self._padded([rows[row] for row in chosen])
            decoder = self._reward.get_decoder()
            hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (b, T, H)
            scores += self._reward_head(hidden[torch.arange(len(chosen)), mask.sum(1) - 1]).tolist()
        return scores

    @torch.no_grad()
    def rollout(self, work: Work, rewards: Sequence[float]) -> Rollout:
        rows = self._rows(work)
        lengths = torch.tensor([len(response) for _, response in rows])
        shape = (len(rows), int(lengths.max()))
        log_probs, values, reference = (torch.zeros(shape) for _ in range(3))
        for chosen, outputs in self._forward(self._policy, rows, range(len(rows)), self._value_head):
            log_probs[chosen, : outputs.log_probs.shape[1]] = outputs.log_probs
            values[chosen, : outputs.values.shape[1]] = outputs.values
        for chosen, outputs in self._forward(self._reference, rows, range(len(rows)), None):
            reference[chosen, : outputs.log_probs.shape[1]] = outputs.log_probs
        return Rollout(
            mask=torch.arange(shape[1]) < lengths[:, None],
            contexts=tuple(response.slot for response in work.responses),
            chains=tuple(response.index for response in work.responses),
            scores=torch.tensor(rewards, dtype=torch.float32),
            log_probs=log_probs,
            values=values,
            reference_log_probs=reference,
        )

    @contextmanager
    def learning(self, work: Work) -> Iterator[Policy]:
        rows = self._rows(work)
        yield lambda chosen: self._forward(self._policy, rows, chosen, self._value_head)

    def forward_tokens(self, work: Work) -> int:
        rows = self._rows(work)
        return sum(
            self._padded([rows[row] for row in chosen])[0].numel()
            for chosen in self._microbatches(rows, range(len(rows)))
        )

    def _prompt(self, work: Work, place: int) -> Ids:
        context = work.contexts[place]
        if context.episode.id not in self._prompts:
            self._prompts[context.episode.id] = self._encoder.prompt(context.episode)
        return self._prompts[context.episode.id]

    def _rows(self, work: Work) -> Rows:
        return [(self._prompt(work, response.slot), list(response.ids)) for response in work.responses]

    def _forward(
        self, model: nn.Module, rows: Rows, wanted: Sequence[int], head: ScalarHead | None
    ) -> Iterator[tuple[list[int], Outputs]]:
        """Log-probabilities, values and entropies of the responses' tokens, microbatch by microbatch."""
        for chosen in self._microbatches(rows, wanted):
            ids, mask = self._padded([rows[row] for row in chosen])  # (b, T)
            answer = model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=head is not None)
            logs = answer.logits[:, :-1].log_softmax(-1)  # (b, T - 1, V)
            log_probs = logs.gather(-1, ids[:, 1:, None])[..., 0]
            entropies = -(logs.exp() * logs).sum(-1)
            # The value head does not shape the policy's hidden states, as in the stage.
            values = torch.zeros_like(log_probs) if head is None else head(answer.hidden_states[-1][:, :-1].detach())
            starts = torch.tensor([len(rows[row][0]) - 1 for row in chosen])
            lengths = torch.tensor([len(rows[row][1]) for row in chosen])
            steps = torch.arange(int(lengths.max()))
            places = (starts[:, None] + steps).clamp(max=ids.shape[1] - 2)  # (b, L)
            there = steps < lengths[:, None]
            log_probs, values, entropies = (
                torch.where(there, found.gather(1, places), 0.0) for found in (log_probs, values, entropies)
            )
            yield chosen, Outputs(log_probs, values, entropies)

    def _microbatches(self, rows: Rows, wanted: Sequence[int]) -> Iterator[list[int]]:
        chosen: list[int] = []
        width = 0
        for row in wanted:
            length = sum(map(len, rows[row]))
            if chosen and max(width, length) * (len(chosen) + 1) > self._config.ppo.token_budget:
                yield chosen
                chosen, width = [], 0
            chosen.append(row)
            width = max(width, length)
        if chosen:
            yield chosen

    def _padded(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Tokens and mask, (b, T) each."""
        width = max(len(prompt) + len(response) for prompt, response in rows)
        ids = torch.full((len(rows), width), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, (prompt, response) in enumerate(rows):
            length = len(prompt) + len(response)
            ids[number, :length] = torch.tensor([*prompt, *response])
            mask[number, :length] = 1
        return ids, mask


def _merged(config: RunConfig, adapter: Path) -> PreTrainedModel:
    model: PreTrainedModel = PeftModel.from_pretrained(load_base(config.model, "cpu"), adapter).merge_and_unload()
    model.eval().requires_grad_(False)
    return model
