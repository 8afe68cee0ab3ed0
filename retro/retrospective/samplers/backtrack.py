"""``backtrack``: a random walk over sentences that can go back, led by the reward model (VGB, arXiv 2510.03149).

A node is a reflection of whole sentences. Its children are its continuations by one sentence: ``drafts`` of them are
drawn from the policy when the walk first leaves the node, and never again, since redrawing them would make the walk
irreversible. A step goes to a child in proportion to π·V(child), or back to the parent in proportion to V(node), where
π is the child's share of the drafts and V the reward model's opinion. A walk that only goes forward is misled where V
errs early; this one finds its way back.

The mode ``exact`` follows the paper's text: the walk is lazy (it stays with probability ½), and a reflection is
accepted if the walk is there after a fixed number of steps, so that among the drafts a reflection has a probability in
proportion to π·V. The mode ``fast`` is not lazy and accepts the first complete reflection: cheaper, and biased. The
authors' code was not read. Unlike the paper's V, ours is a reward model that was trained on complete reflections: it
scores each beginning as if the reflection ended there. Reflections have few sentences, so expect about the quality of
Best-of-N with N from 4 to 8.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from retro.config import ConfigError, PositiveFloat, PositiveInt, SamplerSection
from retro.retrospective.drafting import Draft, Drafting, DraftingReflector
from retro.retrospective.samplers.base import Scorer
from retro.types import Reflection, ReflectionRequest, Reflector, Usage, derive_seed

WALKS = 100
"""Walks in the mode ``exact``, at most; all but the accepted one end at an incomplete reflection."""
LEAST_VALUE = 1e-100
"""Values are positive, so that no part of the tree is cut off."""


class BacktrackOptions(SamplerSection):
    """A walk over the sentences of a reflection that can go back, led by the reward model."""

    kind: Literal["backtrack"] = "backtrack"
    mode: Literal["fast", "exact"] = "fast"
    """``fast`` keeps the first complete reflection that the walk comes to. ``exact`` keeps the one where a walk of
    ``steps`` steps ends, and starts again where that is incomplete: for this it draws more sentences."""
    drafts: PositiveInt = 4
    """Continuations that are drawn of each part of a reflection that the walk goes on from."""
    expansions: PositiveInt = 32
    """Parts of a reflection whose continuations are drawn, at most. After that, the walk does not go back any more."""
    steps: PositiveInt = 64
    """Steps of one walk in the mode ``exact``: about four times the square of the number of sentences."""
    power: PositiveFloat = 1.0
    """The value of a reflection is the sigmoid of its score, to this power: more favours high scores more."""


@dataclass(eq=False, slots=True)
class Node:
    """A reflection of whole sentences."""

    draft: Draft
    value: float = 1.0
    """V, positive. That of the root is not used."""
    share: float = 1.0
    """Of its parent's drafts, those that are equal to this one."""
    parent: Node | None = None
    reflection: Reflection | None = None
    """With its score; the root has none."""
    children: list[Node] | None = None
    """None: not drawn yet."""

    @property
    def leaf(self) -> bool:
        """Whether the reflection is complete."""
        return self.draft.finish_reason is not None


def moves(node: Node) -> list[tuple[Node, float]]:
    """Where a step from a node leads, and how probably: to a child by share · V(child), to the parent by V(node)."""
    weights = [(child, child.share * child.value) for child in node.children or ()]
    if node.parent is not None:
        weights.append((node.parent, node.value))
    total = math.fsum(weight for _, weight in weights)
    return [(target, weight / total) for target, weight in weights]


@dataclass(slots=True)
class Tree:
    """The sentences that were drawn for one reflection, their scores, and their cost."""

    request: ReflectionRequest
    drafting: Drafting
    scorer: Scorer
    drafts: int
    power: float
    seed: int
    root: Node = field(default_factory=lambda: Node(Draft()))
    expansions: int = 0
    usage: Usage = field(default_factory=Usage)
    """What the policy read and wrote."""

    async def expand(self, node: Node) -> None:
        """Draw the children of a node; equal drafts are one child."""
        seed = derive_seed(self.seed, "drafts", *node.draft.ids)
        drawn, usage = await self.drafting.extend(node.draft, self.drafts, seed)
        self.expansions, self.usage = self.expansions + 1, self.usage + usage
        counts = Counter(drawn)
        written = [replace(self.drafting.reflection(draft), index=index) for index, draft in enumerate(counts)]
        scores = await self.scorer(self.request, written)
        node.children = [
            Node(draft, value(score, self.power), number / len(drawn), node, replace(reflection, score=score))
            for (draft, number), reflection, score in zip(counts.items(), written, scores, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Backtrack:
    """A reflector whose walk over the sentences of ``policy`` can go back."""

    Options = BacktrackOptions

    policy: DraftingReflector
    scorer: Scorer
    options: BacktrackOptions = field(default_factory=BacktrackOptions)

    @classmethod
    def from_options(cls, options: BacktrackOptions, policy: Reflector, scorer: Scorer | None) -> Self:
        """Raises ConfigError without a reward model, or for a policy that writes only whole reflections."""
        if scorer is None:
            raise ConfigError("the sampler backtrack needs a reward model, and this run has none: run the stage reward")
        if not isinstance(policy, DraftingReflector):
            raise ConfigError(
                f"the sampler backtrack needs a policy that writes a sentence at a time, and {type(policy).__name__} "
                "has no method drafting: use the sampler best_of"
            )
        return cls(policy, scorer, options)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections, each from a tree of its own.

        The usage is all that the policy read and wrote; what the prompt of the first one costs is not counted again in
        the others where the policy remembers it. The reward model's reading is not in it, as in Best-of-N.

        Raises:
            PromptTooLongError: if the episode does not fit.
            ConfigError: if the policy's model is asked in a chat.
        """
        kept = []
        with self.policy.drafting(request) as drafting:
            for index in range(request.count):
                seed = derive_seed(request.seed, index)
                tree = Tree(request, drafting, self.scorer, self.options.drafts, self.options.power, seed)
                leaf = await self.walk(tree)
                assert leaf.reflection is not None
                kept.append(replace(leaf.reflection, index=index, usage=tree.usage))
        return kept

    async def walk(self, tree: Tree) -> Node:
        """A complete reflection."""
        draws, exact = random.Random(derive_seed(tree.seed, "walk")), self.options.mode == "exact"
        node = tree.root
        for _ in range(WALKS if exact else 1):
            node = tree.root
            for _ in range(self.options.steps if exact else WALKS * self.options.steps):
                if exact and draws.random() < 0.5:
                    continue
                if node.children is None and not node.leaf:
                    if tree.expansions == self.options.expansions:
                        return await self._descend(tree, node, draws)
                    await tree.expand(node)
                node = choose(moves(node), draws)
                if node.leaf and not exact:
                    return node
            if node.leaf:
                return node
        return await self._descend(tree, node, draws)

    async def _descend(self, tree: Tree, node: Node, draws: random.Random) -> Node:
        """Go to children alone until the reflection is complete."""
        while not node.leaf:
            if node.children is None:
                await tree.expand(node)
            node = choose([(target, weight) for target, weight in moves(node) if target is not node.parent], draws)
        return node


def choose(targets: list[tuple[Node, float]], draws: random.Random) -> Node:
    """One of the targets, in proportion to their weights."""
    [chosen] = draws.choices([node for node, _ in targets], [weight for _, weight in targets])
    return chosen


def value(score: float, power: float) -> float:
    """``sigmoid(score) ** power``, at least :data:`LEAST_VALUE`."""
    log_sigmoid = min(score, 0.0) - math.log1p(math.exp(-abs(score)))
    return max(math.exp(power * log_sigmoid), LEAST_VALUE)
