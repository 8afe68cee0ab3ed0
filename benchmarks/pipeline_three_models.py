"""The naive PPO step: three whole models, and every response with a copy of its prompt of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.pipeline_sampling import Ids, generate
from retro.config import RunConfig
from retro.models.heads import ScalarHead, load_head
from retro.models.loading import load_base, load_tokenizer
from retro.rl.experience import Outputs


class ThreeModels:
    """Policy (a base with a LoRA adapter), reference and reward model (two more bases, their adapters merged).

    A forward pass takes as many rows as the token budget allows, in their order, padded on the right to the longest,
    and computes the logits of every token.

    Args:
        folder: the adapters ``policy``, ``reference`` and ``reward``, each in PEFT's format, with the two heads.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.tokenizer = load_tokenizer(config.model)
        base = load_base(config.model, "cpu")
        self.policy = PeftModel.from_pretrained(base, folder / "policy", is_trainable=True).eval()
        self.reference = _merged(config, folder / "reference")
        self.reward = _merged(config, folder / "reward")
        self.value_head = load_head(folder / "value_head.safetensors")
        self.reward_head = load_head(folder / "reward_head.safetensors").requires_grad_(False)
        self._budget = config.ppo.token_budget
        self._group, self._longest = config.ppo.group, config.model.max_new_tokens

    @property
    def modules(self) -> list[nn.Module]:
        return [self.policy, self.reference, self.reward, self.value_head, self.reward_head]

    @property
    def policy_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def sample(self, prompts: Sequence[Ids]) -> list[list[Ids]]:
        return generate(self.policy, self.tokenizer, prompts, self._group, self._longest)

    @torch.no_grad()
    def scores(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> list[float]:
        """The reward head at each response's last token. Prompt ``i`` belongs to response ``i``."""
        scores: list[float] = []
        for rows in self._microbatches(prompts, responses, range(len(responses))):
            ids, mask = self._padded([prompts[row] + responses[row] for row in rows])
            hidden = self.reward.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = mask.sum(1) - 1
            scores += self.reward_head(hidden[torch.arange(len(rows)), last]).tolist()
        return scores

    def outputs(
        self,
        model: nn.Module,
        prompts: Sequence[Ids],
        responses: Sequence[Ids],
        rows: Sequence[int],
        head: ScalarHead | None,
    ) -> Iterator[tuple[list[int], Outputs]]:
        """Log-probabilities, entropies and values of the responses' tokens, microbatch by microbatch."""
        for chosen in self._microbatches(prompts, responses, rows):
            ids, mask = self._padded([prompts[row] + responses[row] for row in chosen])  # (b, T)
            answer = model(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=head is not None
            )
            logs = answer.logits[:, :-1].log_softmax(-1)  # (b, T - 1, V)
            log_probs = logs.gather(-1, ids[:, 1:, None])[..., 0]
            entropies = -(logs.exp() * logs).sum(-1)
            values = torch.zeros_like(log_probs) if head is None else head(answer.hidden_states[-1][:, :-1].detach())
            starts = torch.tensor([len(prompts[row]) - 1 for row in chosen])
            lengths = torch.tensor([len(responses[row]) for row in chosen])
            steps = torch.arange(int(lengths.max()))
            places = (starts[:, None] + steps).clamp(max=ids.shape[1] - 2)  # (b, L)
            there = steps < lengths[:, None]
            yield (
                chosen,
                Outputs(*(torch.where(there, of.gather(1, places), 0.0) for of in (log_probs, values, entropies))),
            )

    def _microbatches(
        self, prompts: Sequence[Ids], responses: Sequence[Ids], rows: Sequence[int]
    ) -> Iterator[list[int]]:
        chosen: list[int] = []
        width = 0
        for row in rows:
            length = len(prompts[row]) + len(responses[row])
            if chosen and max(width, length) * (len(chosen) + 1) > self._budget:
                yield chosen
                chosen, width = [], 0
            chosen.append(row)
            width = max(width, length)
        if chosen:
            yield chosen

    def _padded(self, rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        """Tokens and mask, (b, T) each."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        return ids, mask

    def tokens(self, prompts: Sequence[Ids], responses: Sequence[Ids]) -> int:
        """Tokens of a forward pass over all responses, padding included."""
        return sum(
            len(rows) * max(len(prompts[row]) + len(responses[row]) for row in rows)
            for rows in self._microbatches(prompts, responses, range(len(responses)))
        )


def _merged(config: RunConfig, adapter: Path) -> nn.Module:
    model = PeftModel.from_pretrained(load_base(config.model, "cpu"), adapter).merge_and_unload()
    return model.eval().requires_grad_(False)
