"""PPO's four roles on one base: policy, reference, reward model, and the value head on the policy's hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from retro.buffer.views import Context
from retro.config import RunConfig, build
from retro.models.adapters import SharedBase
from retro.models.heads import ScalarHead, load_head, save_head
from retro.models.packing import PackedBatch, pack, plan, response_outputs, tree_tokens
from retro.models.running import Generated
from retro.models.text import decode, decode_response
from retro.retrospective.generator import Generator
from retro.retrospective.reward_files import RewardFiles
from retro.retrospective.reward_model import RewardModel
from retro.rl.experience import Outputs, Policy, Rollout
from retro.training.examples import Encoder
from retro.training.ppo_rewards import Response, Scored
from retro.types import Reflection, Sampling

VALUE_FILE = "value_head.safetensors"


@dataclass(slots=True)
class Batch:
    """Whole groups of responses behind their prompts, and how they are packed: equal packings are made once a step."""

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    """Of each prompt: its group's tokens."""
    packed: dict[tuple[int, ...], PackedBatch] = field(default_factory=dict)

    def rows(self, context: int) -> range:
        """Where a context's responses stand among all of them."""
        group = len(self.responses[context])
        return range(context * group, (context + 1) * group)


class PpoModels:
    """The shared base with its roles, asked in the stage's words."""

    def __init__(
        self,
        config: RunConfig,
        base: SharedBase,
        value_head: ScalarHead,
        reward: RewardModel | None,
        entropy_gradient: bool = False,
    ) -> None:
        self._base, self._value_head, self._reward = base, value_head, reward
        self._budget = config.ppo.token_budget
        self._entropy_gradient = entropy_gradient
        self._encoder = Encoder(base.tokenizer, config)
        self._generator: Generator = build(config.model.generator, base=base)
        self._prompts: dict[str, list[int]] = {}
        for module in base.model.modules():  # PPO's ratio compares two passes of one policy: dropout makes them of two
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    @classmethod
    def load(
        cls,
        config: RunConfig,
        device: torch.device,
        sft: Path,
        reward: RewardFiles | None,
        checkpoint: Path | None,
        sharded: bool = False,
        entropy_gradient: bool = False,
    ) -> PpoModels:
        """Policy and reference from the supervised adapter, or the policy from a checkpoint to resume.

        The value head starts at zero: it predicts nothing until it has seen returns. The reference is a copy of the
        supervised adapter, not the bare base: that one never learnt to write what PPO starts from.

        Args:
            sft: the supervised adapter's folder.
            reward: where the reward model lies, if it is asked.
            checkpoint: of PPO itself.
            sharded: keep the base's layers in pieces, one a process.
            entropy_gradient: whether the loss has an entropy term.
        """
        base = SharedBase.load(config.model, "cpu" if sharded else device)
        base.load_role("reference", sft, trainable=False)
        base.load_role("policy", checkpoint or sft, trainable=True)
        value_head = (
            ScalarHead(base.hidden_size, zero=True) if checkpoint is None else load_head(checkpoint / VALUE_FILE)
        )
        model = RewardModel.load(base, reward, config.ppo.token_budget, device) if reward else None
        if sharded:
            base.shard(device)
        return cls(config, base, value_head.to(device), model, entropy_gradient)

    @property
    def policy_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {f"policy.{name}": value for name, value in self._base.role_parameters("policy").items()}

    @property
    def value_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {f"value.{name}": value for name, value in self._value_head.named_parameters()}

    @property
    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """All that a checkpoint's optimiser state is about, by name."""
        return self.policy_parameters | self.value_parameters

    def save(self, folder: Path) -> None:
        """The policy as a plain PEFT adapter, the value head beside it."""
        self._base.save_role("policy", folder)
        save_head(self._value_head, folder / VALUE_FILE)

    def prompt(self, context: Context) -> list[int]:
        """The tokens of the reflection prompt; encoded once a context."""
        if context.episode.id not in self._prompts:
            self._prompts[context.episode.id] = self._encoder.prompt(context)
        return self._prompts[context.episode.id]

    def prompt_text(self, context: Context) -> str:
        return decode(self._base.tokenizer, self.prompt(context))

    def sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[Sequence[int]], step: int
    ) -> list[list[tuple[Generated, str]]]:
        """The policy's responses and their texts: one a seed, behind one prefill a context.

        Args:
            step: how many steps the policy has learnt.
        """
        prompts = [self.prompt(context) for context in contexts]
        self._generator.use("policy", f"step-{step}")
        groups = self._generator.sample(prompts, len(seeds[0]) if seeds else 0, sampling, seeds)
        return [
            [(written, decode_response(self._base.tokenizer, written.ids)) for written in group] for group in groups
        ]

    def scores(self, contexts: Sequence[Context], responses: Sequence[Response]) -> list[float]:
        """The reward model's raw score of each response, read as its text: what Best-of-N will see, too.

        Args:
            contexts: one a group.
            responses: whole groups, in the order of ``contexts``.
        """
        if self._reward is None:
            raise ValueError("the reward model was not loaded")
        texts = [Reflection(response.text, "ppo", finish_reason=response.finish_reason) for response in responses]
        batch = self._batch(contexts, [self._encoder.response(text) for text in texts])
        return list(chain(*self._reward.scores(batch.prompts, batch.responses)))

    def batch(self, contexts: Sequence[Context], responses: Sequence[Response]) -> Batch:
        """The sampled tokens of whole groups, in the order of their ``contexts``."""
        return self._batch(contexts, [list(response.ids) for response in responses])

    def _batch(self, contexts: Sequence[Context], responses: Sequence[list[int]]) -> Batch:
        group = len(responses) // max(len(contexts), 1)
        groups = [list(responses[place * group : (place + 1) * group]) for place in range(len(contexts))]
        return Batch([self.prompt(context) for context in contexts], groups)

    def rollout(self, batch: Batch, scored: Scored) -> Rollout:
        """Log-probabilities and values of the sampled tokens, by the policy before the update and by the reference."""
        lengths = torch.tensor([len(response.ids) for response in scored.responses], dtype=torch.long)
        longest = int(lengths.max()) if len(lengths) else 0
        shape = (len(lengths), longest)
        device = self._base.device
        mask = torch.arange(longest) < lengths[:, None]  # (B, L)
        found = {name: torch.zeros(shape, device=device) for name in ("log_probs", "values", "reference")}
        everything = range(len(scored.responses))
        with self._base.role("policy"):
            for rows, outputs in self._forward(batch, everything, with_values=True):
                found["log_probs"][rows, : outputs.log_probs.shape[1]] = outputs.log_probs
                found["values"][rows, : outputs.values.shape[1]] = outputs.values
        with self._base.role("reference"):
            for rows, outputs in self._forward(batch, everything, with_values=False):
                found["reference"][rows, : outputs.log_probs.shape[1]] = outputs.log_probs
        return Rollout(
            mask=mask.to(device),
            contexts=tuple(response.place for response in scored.responses),
            scores=torch.tensor([worth.score for worth in scored.worths], dtype=torch.float32, device=device),
            log_probs=found["log_probs"],
            values=found["values"],
            reference_log_probs=found["reference"],
        )

    @contextmanager
    def learning(self, batch: Batch) -> Iterator[Policy]:
        """The policy's differentiable forward pass, with its adapter switched on from the first forward to the last
        backward."""

        def policy(rows: Sequence[int]) -> Iterator[tuple[list[int], Outputs]]:
            yield from self._forward(batch, rows, with_values=True)
            self._base.finish_passes()  # the gradient sum over processes is next

        with self._base.role("policy", train=True):
            yield policy

    def _forward(self, batch: Batch, rows: Sequence[int], with_values: bool) -> Iterator[tuple[list[int], Outputs]]:
        group = len(batch.responses[0]) if batch.responses else 1
        for contexts, packed in self._packs(batch, sorted({row // group for row in rows})):
            head = self._detached_value if with_values else None
            outputs = response_outputs(self._base.model, packed, head, entropy_gradient=self._entropy_gradient)
            values = torch.zeros_like(outputs.log_probs) if outputs.values is None else outputs.values
            chosen = [row for context in contexts for row in batch.rows(context)]
            yield chosen, Outputs(outputs.log_probs, values, outputs.entropies)

    def _detached_value(self, hidden: Tensor) -> Tensor:
        """The value head reads the policy's hidden states and does not shape them.

        Its first errors are the whole return, far larger than the policy's signal: through a shared adapter they would
        deform the policy, and take most of the clipped gradient.
        """
        value: Tensor = self._value_head(hidden.detach())
        return value

    def _packs(self, batch: Batch, contexts: Sequence[int]) -> Iterator[tuple[list[int], PackedBatch]]:
        """As many contexts a pass as the token budget allows."""
        tokens = tree_tokens(self._base.model, batch.prompts, batch.responses)
        for places in plan([tokens[context] for context in contexts], self._budget):
            chosen = [contexts[place] for place in places]
            key = tuple(chosen)
            if key not in batch.packed:
                packed = pack(
                    [batch.prompts[context] for context in chosen], [batch.responses[context] for context in chosen]
                )
                batch.packed[key] = packed.to(self._base.device)
            yield chosen, batch.packed[key]
