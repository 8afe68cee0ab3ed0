"""The walk that can go back: its stationary distribution, how far it is from it, what it costs, and what it refuses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest

from retro.config import ConfigError, SamplerSection, build, parse_section
from retro.retrospective.drafting import Draft, as_reflection
from retro.retrospective.samplers.backtrack import Backtrack, BacktrackOptions, Node, Tree, moves, value
from retro.types import Episode, Reflection, ReflectionRequest, Split, StopReason, Task, Trajectory, Usage

Floats = npt.NDArray[np.float64]
EPISODE = Episode("e", Task("vault", "1", Split.TEST), 0, Trajectory("?"), 0.0, False, StopReason.FAILURE)
BAD = 0.001
"""The value of a leaf that is not good."""


def random_tree(depth: int, noise: float, rng: np.random.Generator) -> tuple[list[Node], Floats]:
    """The nodes of a binary tree with about 5 % good leaves, level by level, and the target on its leaves.

    The inner values are the true ones times ``exp(noise · N(0, 1))``.
    """
    count, leaves = 2 ** (depth + 1) - 1, 2**depth
    true = np.zeros(count)
    true[-leaves:] = np.where(rng.random(leaves) < 0.05, 1.0, BAD)
    for index in reversed(range(count - leaves)):
        true[index] = (true[2 * index + 1] + true[2 * index + 2]) / 2
    seen = true.copy()
    seen[:-leaves] *= np.exp(noise * rng.standard_normal(count - leaves))
    nodes = [Node(Draft(), float(seen[0]))]
    for index in range(1, count):
        parent = nodes[(index - 1) // 2]
        ended = "stop" if index >= count - leaves else None
        nodes.append(Node(Draft(str(index), (), ended), float(seen[index]), 0.5, parent))
        parent.children = [*(parent.children or []), nodes[-1]]
    return nodes, true[-leaves:] / true[-leaves:].sum()


class Chain:
    """The transitions of :func:`moves` between the nodes of a binary tree, as arrays."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.count, self.leaves = len(nodes), (len(nodes) + 1) // 2
        index = {id(node): place for place, node in enumerate(nodes)}
        self.up, self.down = np.zeros(self.count), np.zeros(self.count)  # of a node: to its parent, from its parent
        for node in nodes:
            for target, probability in moves(node):
                if target is node.parent:
                    self.up[index[id(node)]] = probability
                else:
                    self.down[index[id(target)]] = probability

    def step(self, mass: Floats) -> Floats:
        moved = mass.repeat(2)[: self.count - 1]  # what the parent of node n ≥ 1 has
        after = np.concatenate([[0.0], moved * self.down[1:]])
        after[: self.count - self.leaves] += (mass * self.up)[1:].reshape(-1, 2).sum(1)
        return after

    def after(self, steps: int) -> Floats:
        """Of a lazy walk from the root, if it is at a leaf then."""
        mass = np.eye(1, self.count)[0]
        for _ in range(steps):
            mass = (mass + self.step(mass)) / 2
        return mass[-self.leaves :] / mass[-self.leaves :].sum()

    def forward(self) -> Floats:
        """Of a walk that never goes back."""
        mass = np.eye(1, self.count)[0]
        ahead = self.down.copy()
        ahead[1:] /= np.repeat(ahead[1:].reshape(-1, 2).sum(1), 2)
        for index in range(1, self.count):
            mass[index] = mass[(index - 1) // 2] * ahead[index]
        return mass[-self.leaves :]

    def first_leaf(self) -> Floats:
        """Where a walk that is not lazy comes to a leaf first, up to the last 0.1 % of walks."""
        mass, ended = np.eye(1, self.count)[0], np.zeros(self.leaves)
        while mass.sum() > 1e-3:
            mass = self.step(mass)
            ended += mass[-self.leaves :]
            mass[-self.leaves :] = 0
        return ended / ended.sum()


def distance(left: Floats, right: Floats) -> float:
    return float(np.abs(left - right).sum() / 2)


@pytest.mark.parametrize(
    ("depth", "noise", "table", "spread"),
    [
        (6, 1.0, (0.180, 0.025, 0.002, 0.109), (0.158, 0.064, 0.014, 0.087)),
        (10, 0.5, (0.312, 0.010, None, 0.092), (0.079, 0.011, 0.0, 0.011)),
        (10, 1.0, (0.532, 0.081, None, 0.205), (0.104, 0.050, 0.0, 0.032)),
    ],
)
def test_the_distance_to_the_target_is_that_of_the_table(
    depth: int, noise: float, table: tuple[float | None, ...], spread: tuple[float, ...]
) -> None:
    """Forward only; exact after 4 H² and 16 H² steps; the first leaf.

    ``spread`` is the standard deviation over trees. It is also twice the standard error of the difference between two
    means over 8 trees.
    """
    found = []
    for seed in range(8):
        nodes, target = random_tree(depth, noise, np.random.default_rng(seed))
        chain = Chain(nodes)
        long = chain.after(16 * depth**2) if table[2] is not None else target
        found.append(
            [distance(p, target) for p in (chain.forward(), chain.after(4 * depth**2), long, chain.first_leaf())]
        )
    forward, exact, longer, first = means = np.mean(found, axis=0)
    for mean, expected, error in zip(means, table, spread, strict=True):
        assert expected is None or mean == pytest.approx(expected, abs=error)
    assert longer < exact < first < forward


def test_detailed_balance_and_the_target_at_the_leaves() -> None:
    nodes, target = random_tree(4, 1.0, np.random.default_rng(1))
    reach = {id(nodes[0]): 1.0}
    weight: dict[int, float] = {}
    for node in nodes:
        if node.parent is not None:
            reach[id(node)] = reach[id(node.parent)] * node.share
        own = node.value if node.parent is not None else 0.0
        weight[id(node)] = reach[id(node)] * (own + sum(child.share * child.value for child in node.children or ()))
    for node in nodes:
        for other, probability in moves(node):
            [back] = [p for target_node, p in moves(other) if target_node is node]
            assert weight[id(node)] * probability == pytest.approx(weight[id(other)] * back, rel=1e-12)
    leaves = np.array([weight[id(node)] for node in nodes if node.leaf])
    assert leaves / leaves.sum() == pytest.approx(target, rel=1e-12)


class Coins:
    """Writes reflections of two sentences: of four drafts three say heads, and one tails. Then it ends."""

    def __init__(self) -> None:
        self.extended: list[str] = []

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        raise AssertionError("it is asked for sentences")

    @contextmanager
    def drafting(self, request: ReflectionRequest) -> Iterator[Coins]:
        yield self

    async def extend(self, draft: Draft, count: int, seed: int) -> tuple[list[Draft], Usage]:
        self.extended.append(draft.text)
        words = ["heads.", "heads.", "tails.", "heads."][:count] if len(draft.ids) < 2 else [""] * count
        ended = "stop" if len(draft.ids) == 2 else None
        drafts = [Draft(f"{draft.text} {word}", (*draft.ids, len(word) + word.count("t")), ended) for word in words]
        return drafts, Usage(10 + len(draft.ids), count)

    def reflection(self, draft: Draft) -> Reflection:
        return as_reflection(draft, "coins", 10)


VALUES = {"heads. heads.": 0.1, "heads. tails.": 0.4, "tails. heads.": 0.9, "tails. tails.": 0.2, "heads.": 0.6}
SHARES = {"heads. heads.": 9, "heads. tails.": 3, "tails. heads.": 3, "tails. tails.": 1}


async def by_text(request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
    values = [VALUES.get(reflection.text, 0.3) for reflection in reflections]
    return [float(np.log(v / (1 - v))) for v in values]


def kept(count: int, seed: int = 0, **options: object) -> list[Reflection]:
    sampler = Backtrack(Coins(), by_text, BacktrackOptions.model_validate({"expansions": 1000, **options}))
    return asyncio.run(sampler.reflect(ReflectionRequest(EPISODE, count, seed)))


def test_exact_walks_draw_in_proportion_to_probability_times_value() -> None:
    drawn = Counter(reflection.text for reflection in kept(400, mode="exact", steps=40))
    weights = {text: share * VALUES[text] for text, share in SHARES.items()}
    for text, weight in weights.items():
        assert drawn[text] / 400 == pytest.approx(weight / sum(weights.values()), abs=0.08)


def test_the_first_leaf_is_biased_as_its_own_chain_says() -> None:
    async def whole_tree() -> Node:
        tree = Tree(ReflectionRequest(EPISODE), Coins(), by_text, 4, 1.0, 0)
        level = [tree.root]
        while level := [node for node in level if not node.leaf]:
            for node in level:
                await tree.expand(node)
            level = [child for node in level for child in node.children or ()]
        return tree.root

    mass: dict[Node, float] = {asyncio.run(whole_tree()): 1.0}
    ended: Counter[str] = Counter()
    for _ in range(200):
        after: dict[Node, float] = {}
        for node, there in mass.items():
            for target, probability in moves(node):
                if target.leaf and target.reflection:
                    ended[target.reflection.text] += there * probability  # type: ignore[assignment]
                else:
                    after[target] = after.get(target, 0.0) + there * probability
        mass = after
    drawn = Counter(reflection.text for reflection in kept(600))
    for text in SHARES:
        assert drawn[text] / 600 == pytest.approx(ended[text], abs=0.06)


def test_equal_seeds_walk_alike_and_the_score_is_that_of_the_kept_one() -> None:
    assert kept(5, seed=3) == kept(5, seed=3)
    assert kept(5, seed=3)[:2] == kept(2, seed=3)
    assert len({reflection.text for reflection in kept(30, seed=4)}) > 2
    for reflection in kept(5, seed=3):
        assert value(reflection.score or 0.0, 1.0) == pytest.approx(VALUES[reflection.text])
    assert [reflection.index for reflection in kept(3)] == [0, 1, 2]


def test_each_node_is_drawn_once_and_all_that_was_read_and_written_is_counted() -> None:
    coins = Coins()
    sampler = Backtrack(coins, by_text, BacktrackOptions(mode="exact", steps=200))
    [reflection] = asyncio.run(sampler.reflect(ReflectionRequest(EPISODE, seed=1)))
    assert len(set(coins.extended)) == len(coins.extended)
    read = sum(10 + text.count(".") for text in coins.extended)
    assert reflection.usage == Usage(read, 4 * len(coins.extended))


def test_after_the_last_expansion_it_only_goes_forward() -> None:
    coins = Coins()
    sampler = Backtrack(coins, by_text, BacktrackOptions(mode="exact", expansions=1))
    [reflection] = asyncio.run(sampler.reflect(ReflectionRequest(EPISODE, seed=1)))
    assert reflection.finish_reason == "stop" and reflection.text in SHARES
    assert len(coins.extended) == 3, "the root, and one for each sentence"


def test_values_are_positive_powers_of_the_sigmoid() -> None:
    assert value(0.0, 1.0) == pytest.approx(0.5)
    assert value(0.0, 3.0) == pytest.approx(0.125)
    assert value(-1e6, 1.0) > 0.0
    assert value(1e6, 2.0) == 1.0


def test_it_needs_a_reward_model_and_a_policy_that_writes_sentences() -> None:
    section = parse_section(SamplerSection, {"kind": "backtrack", "drafts": 2})
    with pytest.raises(ConfigError, match="run the stage reward"):
        build(section, policy=Coins(), scorer=None)

    class Whole:
        async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
            return []

    with pytest.raises(ConfigError, match="Whole has no method drafting"):
        build(section, policy=Whole(), scorer=by_text)
    assert build(section, policy=Coins(), scorer=by_text).options.drafts == 2
