"""The quickstart's small models: their tokenizer, the demonstrator behind the actor, the files, the training loop."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from retro.envs.household import CLOSED, TOOLS, World, draw_world, kind_of, know_all
from retro.prompts import load_prompts
from retro.types import Trajectory
from scripts.small_models.household import reflections
from scripts.small_models.household.demonstrator import FORGETS, Advice, Demonstrator
from scripts.small_models.household.probes import load, rollouts, rooms
from scripts.small_models.household.samples import Play, play, plays
from scripts.small_models.household.tokenizer import build_tokenizer
from scripts.small_models.train import Example, _losses, train

QUICKSTART = Path(__file__).parents[2] / "data" / "quickstart"
PROMPTS = load_prompts("household")


def test_the_tokenizer_is_lossless_on_all_that_the_household_says() -> None:
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    texts: list[str] = []
    for number in range(60):
        for attempt in plays(("tokenizer", number), 4, 12):
            texts.append(PROMPTS.actor(attempt.opening, attempt.steps, attempt.notes))
            trajectory = Trajectory(attempt.opening, attempt.steps)
            texts.append(PROMPTS.reflection(trajectory, attempt.return_, attempt.success, attempt.notes))
            texts.append(reflections.write(attempt.world, attempt.steps, attempt.notes, rng))
            texts.append(know_all(attempt.world))
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_a_name_and_its_number_are_one_token() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("go to cabinet 2") == ["go to", "cabinet 2"]
    assert tokenizer.tokenize("failed, score 0.33\n") == ["failed", ",", "score", "0.33", "\n"]


@pytest.mark.parametrize("role", ["actor", "retrospective"])
def test_the_saved_tokenizer_is_the_built_one(role: str) -> None:
    saved = AutoTokenizer.from_pretrained(QUICKSTART / role)
    assert saved.get_vocab() == build_tokenizer().get_vocab()
    assert saved.decode(saved.encode("go to cabinet 2\n>")) == "go to cabinet 2\n>"


def first_goes(world: World, notes: Sequence[str], count: int = 40) -> set[str]:
    """Where the demonstrator goes first, over ``count`` draws."""
    actions = {Demonstrator(world, notes, random.Random(seed)).act() for seed in range(count)}
    assert all(action.startswith("go to ") for action in actions)
    return {action.removeprefix("go to ") for action in actions}


def ways(world: World, notes: Sequence[str], count: int = 60) -> list[Play]:
    return [play(world, notes, random.Random(seed)) for seed in range(count)]


def tools_used(attempt: Play) -> list[str]:
    goes = [step.action.removeprefix("go to ") for step in attempt.steps if step.action.startswith("go to ")]
    return [place for place in goes if place in attempt.world.tools]


PICK = draw_world(5, kind="pick")
TARGET = PICK.targets[0]
WRONG = [place for place in PICK.places if TARGET not in PICK.contents[place]]


def test_it_opens_what_it_finds_closed() -> None:
    opened = {
        kind_of(step.action.removeprefix("open "))
        for seed in range(30)
        for step in play(draw_world(seed), [], random.Random(seed)).steps
        if step.action.startswith("open ")
    }
    assert opened == set(CLOSED)


def test_without_notes_it_searches_here_and_there() -> None:
    assert len(first_goes(PICK, [])) > 3


def test_it_goes_where_the_object_is_said_to_be_right_or_wrong_the_newest_note_first() -> None:
    assert first_goes(PICK, [f"{TARGET} is in {WRONG[0]}."]) == {WRONG[0]}
    assert first_goes(PICK, [f"{TARGET} is in {WRONG[0]}.", f"{TARGET} is in {WRONG[1]}.", "try again."]) == {WRONG[1]}


def test_it_tries_what_it_is_told_to_try_in_order() -> None:
    assert first_goes(PICK, [f"try {WRONG[2]} {WRONG[0]}."]) == {WRONG[2]}
    assert first_goes(PICK, [f"try {WRONG[2]}.", f"try {WRONG[1]}."]) == {WRONG[1]}
    asked = [WRONG[2], WRONG[0]]
    for attempt in ways(PICK, [f"try {' '.join(asked)}."], 10):
        goes = [step.action.removeprefix("go to ") for step in attempt.steps if step.action.startswith("go to ")]
        assert goes[:2] == asked


def test_it_keeps_away_from_where_nothing_is_said_to_be() -> None:
    left = PICK.places[:2]
    others = [place for place in PICK.places if place not in left]
    notes = [f"nothing in {' '.join(others[:4])}.", f"nothing in {' '.join(others[4:])}."]
    assert first_goes(PICK, notes) <= set(left)


@pytest.mark.parametrize("kind", sorted(TOOLS))
def test_it_obeys_what_is_said_of_tools_and_of_the_treatment(kind: str) -> None:
    seed = next(seed for seed in range(100) if draw_world(seed, kind=kind).broken)
    world = draw_world(seed, kind=kind, slack=6)
    working = next(tool for tool in world.tools if tool != world.broken)
    where = f"{world.targets[0]} is in {world.place_of(world.targets[0])}."
    remember = f"remember to {kind} it."
    for tool in world.tools:
        assert {tools_used(attempt)[0] for attempt in ways(world, [f"{where} {remember} use {tool}."])} == {tool}
    avoiding = ways(world, [f"{world.broken} is broken.", f"{where} {remember}"])
    assert {tuple(tools_used(attempt)) for attempt in avoiding} == {(working,)}
    assert all(attempt.success for attempt in avoiding)
    treated = [bool(tools_used(attempt)) for attempt in ways(world, [where], 200)]
    assert abs(treated.count(False) / 200 - FORGETS[kind]) < 0.12  # without a reminder; 3.4 standard deviations
    assert {tools_used(attempt)[0] for attempt in ways(world, [f"{where} {remember}"])} == set(world.tools)


def test_advice_is_read_from_all_notes_the_newest_first() -> None:
    advice = Advice.of(
        ["mug 1 is in desk 1. use fridge 1. try desk 1 shelf 1.", "mug 1 is in shelf 2. fridge 2 is broken."]
    )
    assert advice.places == {"mug 1": "shelf 2"}
    assert advice.use == "fridge 1"
    assert advice.broken == {"fridge 2"}
    assert advice.try_places == ["desk 1", "shelf 1"]


def test_whoever_knows_the_room_succeeds() -> None:
    for seed in range(100):
        world = draw_world(seed)
        assert play(world, [know_all(world)], random.Random(seed)).success


@pytest.mark.parametrize("role", ["actor", "retrospective"])
def test_the_models_load_without_this_project(role: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(QUICKSTART / role)
    tokenizer = AutoTokenizer.from_pretrained(QUICKSTART / role)
    assert model.num_parameters() < 2_000_000
    assert model.config.vocab_size == len(tokenizer)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode("go to desk 1\n>")]])
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_the_actor_succeeds_with_the_oracles_reflection() -> None:
    worlds = rooms(30, lambda world: True)
    played = rollouts(load(QUICKSTART / "actor"), worlds, [[know_all(world)] for world in worlds])
    succeeded = [sum(step.reward for step in steps) > 0.999 for steps in played]
    assert sum(succeeded) >= 27


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, max_position_embeddings=64, tie_word_embeddings=True, **shape))


def samples(step: int) -> list[Example]:
    """Some with learnt tokens in the prefix, some with branches behind it."""
    rng = random.Random(step)

    def ids(count: int) -> list[int]:
        return [rng.randrange(20) for _ in range(count)]

    plain = [Example(ids(8), [False] * 4 + [True] * 4, []) for _ in range(3)]
    return [*plain, Example(ids(5), [False] * 5, [ids(3), ids(4)])]


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_a_killed_training_goes_on_to_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole = tiny()
    train(whole, samples, tmp_path / "whole", steps=6, lr=1e-2, every=2)

    def cut(step: int) -> list[Example]:
        if step == 3:
            raise KeyboardInterrupt
        return samples(step)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), cut, tmp_path / "cut", steps=6, lr=1e-2, every=2)
    resumed = tiny()
    train(resumed, samples, tmp_path / "cut", steps=6, lr=1e-2, every=2)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "cut")] == [2, 4, 6]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_training_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    train(tiny(), samples, tmp_path, steps=2, lr=1e-2)
    with pytest.raises(ValueError, match="remove it to begin anew"):
        train(tiny(), samples, tmp_path, steps=4, lr=1e-2)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="an earlier version"):
        train(tiny(), samples, tmp_path, steps=2, lr=1e-2)


def test_branches_do_not_see_one_another(tmp_path: Path) -> None:
    """One example with two branches has the loss of two examples with one each."""
    prefix, branches = [1, 2, 3], [[4, 5, 6], [7, 8]]
    train(tiny(), lambda _: [Example(prefix, [False] * 3, branches)], tmp_path / "one", steps=1, lr=1e-3)
    apart = [Example(prefix, [False] * 3, [branch]) for branch in branches]
    train(tiny(), lambda _: apart, tmp_path / "two", steps=1, lr=1e-3)
    assert losses(tmp_path / "one")[0][1] == pytest.approx(
        losses(tmp_path / "two")[0][1], abs=2e-4
    )  # 4 digits are kept


def test_a_training_learns(tmp_path: Path) -> None:
    train(tiny(), lambda step: samples(0), tmp_path, steps=60, lr=3e-2, every=10)
    found = [loss for _, loss in losses(tmp_path)]
    assert found[-1] < 0.5 * found[0]


def test_what_is_only_read_is_learnt_by_its_weight_and_logged_losses_leave_it_out(tmp_path: Path) -> None:
    read: dict[float, float] = {}
    for weight in (0.0, 0.5):
        model = tiny()
        train(model, lambda _: samples(0), tmp_path / f"{weight}", steps=30, lr=3e-2, every=1, read_weight=weight)
        read[weight] = _losses(model, samples(0), True)[1].item()
    assert losses(tmp_path / "0.5")[0] == losses(tmp_path / "0.0")[0]
    assert read[0.5] < 0.5 * read[0.0]
    assert _losses(tiny(), samples(0), False)[1].item() == 0
