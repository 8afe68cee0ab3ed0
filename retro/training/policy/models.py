"""The roles of the policy stage on one base: policy, reference, reward model; and a value head on the policy."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
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
from retro.prompts import PromptTooLongError
from retro.retrospective.generator import Generator
from retro.retrospective.reward_files import RewardFiles
from retro.retrospective.reward_model import RewardModel
from retro.rl.experience import Outputs, Policy, Rollout
from retro.training.examples import encoder_of_run
from retro.training.policy.groups import Group, Response
from retro.types import Sampling

VALUE_FILE = "value_head.safetensors"
POLICY, REFERENCE = "policy", "reference"
"""The names of the adapters on the shared base."""
KEPT_PROMPTS = 4096
"""Prompts that are kept in tokens, so that those of chains do not fill the memory."""


@dataclass
class Packs:
    """Groups of responses behind their prompts, and their packings, each made once in a step."""

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    """For each prompt, the tokens of its group's responses."""
    packed: dict[tuple[int, ...], PackedBatch] = field(default_factory=dict)

    @cached_property
    def group_of(self) -> list[int]:
        """The group of each row, which is one response."""
        return [group for group, responses in enumerate(self.responses) for _ in responses]

    def rows(self, group: int) -> range:
        """The rows of a group's responses among all of them."""
        first = bisect_left(self.group_of, group)
        return range(first, first + len(self.responses[group]))


class PolicyModels:
    """The shared base with its roles: samples, scores and differentiates contexts and groups.

    Args:
        base: with the role ``policy``, and ``reference`` where an algorithm compares the policy with it.
        value_head: predicts returns from the policy's hidden states; None where the algorithm needs no values.
        reward: the reward model, if a term of the reward needs it.
    """

    def __init__(
        self, config: RunConfig, base: SharedBase, value_head: ScalarHead | None, reward: RewardModel | None
    ) -> None:
        self.base = base
        self.encoder = encoder_of_run(base.tokenizer, config)
        self._value_head, self._reward = value_head, reward
        self._budget = config.ppo.token_budget
        self._generator: Generator = build(config.model.generator, base=base)
        self._prompts: dict[str, list[int]] = {}
        for module in base.model.modules():  # PPO's ratio compares two passes of one policy; dropout would change it
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    @classmethod
    def load(
        cls,
        config: RunConfig,
        device: torch.device,
        sft: Path,
        needs: Collection[str] = ("reference", "values"),
        reward: RewardFiles | None = None,
        checkpoint: Path | None = None,
        sharded: bool = False,
        kind: type[SharedBase] = SharedBase,
    ) -> PolicyModels:
        """Load the policy from the supervised adapter or from a checkpoint, and what else the algorithm needs.

        The value head starts at zero: it predicts nothing until it has seen returns. The reference is a copy of the
        supervised adapter, where the policy starts, and not the bare base, which never learnt to write reflections.

        Args:
            sft: the supervised adapter's folder.
            needs: the algorithm's; ``reference`` and ``values`` matter here.
            reward: where the reward model lies, if a term of the reward needs it.
            checkpoint: one of this stage, to resume from.
            sharded: whether each process keeps a piece of every layer of the base.
            kind: the class of the base.
        """
        base = kind.load(config.model, "cpu" if sharded else device)
        if "reference" in needs:
            base.load_role(REFERENCE, sft, trainable=False)
        base.load_role(POLICY, checkpoint or sft, trainable=True)
        head: ScalarHead | None = None
        if "values" in needs:
            head = ScalarHead(base.hidden_size, zero=True) if checkpoint is None else load_head(checkpoint / VALUE_FILE)
            head = head.to(device)
        model = RewardModel.load(base, reward, config.ppo.token_budget, device) if reward else None
        if sharded:
            base.shard(device)
        return cls(config, base, head, model)

    @property
    def parts(self) -> dict[str, dict[str, torch.nn.Parameter]]:
        """What is trained, by the name of its learning rate: ``policy``, and ``value`` where there is a value head."""
        parts = {"policy": self.base.role_parameters(POLICY)}
        if self._value_head is not None:
            parts["value"] = dict(self._value_head.named_parameters())
        return {part: {f"{part}.{name}": value for name, value in of.items()} for part, of in parts.items()}

    @property
    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """All parameters that the optimiser updates, by name."""
        return {name: value for part in self.parts.values() for name, value in part.items()}

    def save(self, folder: Path) -> None:
        """Write the policy as a plain PEFT adapter, with the value head beside it."""
        self.base.save_role(POLICY, folder)
        if self._value_head is not None:
            save_head(self._value_head, folder / VALUE_FILE)

    def prompt(self, context: Context) -> list[int]:
        """The tokens of the reflection prompt. Those of the latest :data:`KEPT_PROMPTS` contexts are kept.

        Raises:
            PromptTooLongError: if it exceeds ``model.max_prompt_tokens``.
        """
        if context.episode.id not in self._prompts:
            self._prompts[context.episode.id] = self.encoder.prompt(context.episode)
            if len(self._prompts) > KEPT_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
        return self._prompts[context.episode.id]

    def fits(self, context: Context) -> bool:
        """Whether the reflection prompt fits ``model.max_prompt_tokens``."""
        try:
            self.prompt(context)
        except PromptTooLongError:
            return False
        return True

    def prompt_text(self, context: Context) -> str:
        return decode(self.base.tokenizer, self.prompt(context))

    def sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[Sequence[int]], step: int
    ) -> list[list[tuple[Generated, str]]]:
        """The policy's responses and their texts, one for each seed of a context.

        Args:
            step: how many steps the policy has learnt.
        """
        prompts = [self.prompt(context) for context in contexts]
        self._generator.use(POLICY, f"step-{step}")
        groups = self._generator.sample(prompts, len(seeds[0]) if seeds else 0, sampling, seeds)
        return [[(written, decode_response(self.base.tokenizer, written.ids)) for written in group] for group in groups]

    def scores(self, groups: Sequence[Group]) -> list[list[float]]:
        """The reward model's raw score of each response's text, as Best-of-N will score it, too."""
        if self._reward is None:
            raise ValueError("the reward model was not loaded")
        prompts = [self.prompt(group.context) for group in groups]
        texts = [[self.encoder.response(response.reflection) for response in group.responses] for group in groups]
        return self._reward.scores(prompts, texts)

    def packs(self, groups: Sequence[Group]) -> Packs:
        """The sampled tokens of whole groups."""
        return Packs(
            [self.prompt(group.context) for group in groups],
            [[list(response.ids) for response in group.responses] for group in groups],
        )

    def with_log_probs(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, whose responses now have the log-probabilities of the policy as it is (``old_log_probs``)."""
        packs = self.packs(groups)
        found: dict[int, list[float]] = {}
        with self.base.role(POLICY):
            for rows, outputs in self._forward(packs, range(len(packs.group_of)), with_values=False):
                found.update(zip(rows, outputs.log_probs.tolist(), strict=True))
        log_probs = (found[row] for row in sorted(found))

        def old(response: Response) -> Response:
            return replace(response, old_log_probs=tuple(next(log_probs)[: len(response.ids)]))

        return [replace(group, responses=tuple(map(old, group.responses))) for group in groups]

    def rollout(self, packs: Packs, responses: Sequence[Response], rewards: Sequence[float]) -> Rollout:
        """Log-probabilities and values of the sampled tokens, by the policy before the update and by the reference.

        Where a response has log-probabilities of the policy that sampled it, those are taken.

        Args:
            responses: those of all groups, in order.
            rewards: one for each response.

        Raises:
            ValueError: if the algorithm did not say that it needs the reference.
        """
        if REFERENCE not in self.base.roles:
            raise ValueError("the reference was not loaded: the algorithm's needs lack 'reference'")
        device = self.base.device
        mask = token_mask(responses).to(device)
        found = {name: torch.zeros(mask.shape, device=device) for name in ("log_probs", "values", "ref")}
        everything = range(len(responses))
        with self.base.role(POLICY):
            for rows, outputs in self._forward(packs, everything, with_values=True):
                found["log_probs"][rows, : outputs.log_probs.shape[1]] = outputs.log_probs
                found["values"][rows, : outputs.values.shape[1]] = outputs.values
        for row, response in enumerate(responses):
            if response.old_log_probs:
                old = torch.tensor(response.old_log_probs, device=device)
                found["log_probs"][row, : len(old)] = old
        with self.base.role(REFERENCE):
            for rows, outputs in self._forward(packs, everything, with_values=False):
                found["ref"][rows, : outputs.log_probs.shape[1]] = outputs.log_probs
        return Rollout(
            mask=mask,
            contexts=tuple(response.slot for response in responses),
            chains=tuple(response.index for response in responses),
            scores=torch.tensor(rewards, dtype=torch.float32, device=device),
            log_probs=found["log_probs"],
            values=found["values"],
            reference_log_probs=found["ref"],
        )

    @contextmanager
    def learning(self, packs: Packs, entropy_gradient: bool = False) -> Iterator[Policy]:
        """The policy's differentiable forward pass. Its adapter stays on until the last backward pass."""
        with self.base.role(POLICY, train=True):
            yield self.differentiable(packs, entropy_gradient)

    def differentiable(self, packs: Packs, entropy_gradient: bool = False) -> Policy:
        """The same for further packs, inside the ``with`` of :meth:`learning`."""

        def policy(rows: Sequence[int]) -> Iterator[tuple[list[int], Outputs]]:
            yield from self._forward(packs, rows, with_values=True, entropy_gradient=entropy_gradient)
            self.base.finish_passes()  # the gradient sum over processes is next

        return policy

    def _forward(
        self, packs: Packs, rows: Sequence[int], with_values: bool, entropy_gradient: bool = False
    ) -> Iterator[tuple[list[int], Outputs]]:
        head = self._detached_value if with_values and self._value_head is not None else None
        for groups, packed in self._packed(packs, sorted({packs.group_of[row] for row in rows})):
            outputs = response_outputs(self.base.model, packed, head, entropy_gradient=entropy_gradient)
            values = torch.zeros_like(outputs.log_probs) if outputs.values is None else outputs.values
            chosen = [row for group in groups for row in packs.rows(group)]
            yield chosen, Outputs(outputs.log_probs, values, outputs.entropies)

    def _detached_value(self, hidden: Tensor) -> Tensor:
        """The value head reads the policy's hidden states, and its loss does not change them.

        Its first errors are as large as the return, far larger than the policy's signal: through a shared adapter they
        would deform the policy and take most of the clipped gradient.
        """
        assert self._value_head is not None
        value: Tensor = self._value_head(hidden.detach())
        return value

    def _packed(self, packs: Packs, groups: Sequence[int]) -> Iterator[tuple[list[int], PackedBatch]]:
        """As many groups in each pass as the token budget allows."""
        tokens = tree_tokens(self.base.model, packs.prompts, packs.responses)
        for indices in plan([tokens[group] for group in groups], self._budget):
            chosen = [groups[index] for index in indices]
            key = tuple(chosen)
            if key not in packs.packed:
                packed = pack([packs.prompts[group] for group in chosen], [packs.responses[group] for group in chosen])
                packs.packed[key] = packed.to(self.base.device)
            yield chosen, packs.packed[key]


def token_mask(responses: Sequence[Response]) -> Tensor:
    """(B, L) bool: which positions of a row are tokens of its response."""
    lengths = torch.tensor([len(response.ids) for response in responses], dtype=torch.long)  # (B,)
    longest = int(lengths.max()) if len(lengths) else 0
    return torch.arange(longest) < lengths[:, None]
