"""What ALFWorld's small models are made from: notes, the demonstrator on the real engine, samples, the tokenizer."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from retro.config import load_config
from retro.envs.alfworld import AlfworldTasks
from retro.evaluation.records import Record
from retro.prompts import load_prompts
from retro.types import Episode, Reflection, Split, Step, StopReason, Task, Trajectory
from scripts.small_models import alfworld
from scripts.small_models.alfworld import STEPS, beginning, reflections, steps_at, writers
from scripts.small_models.alfworld.demonstrator import CHARACTERS, Told
from scripts.small_models.alfworld.language import PHRASINGS, SENTENCES, TOOLS, UNREAD, Advice, Says
from scripts.small_models.alfworld.named import named
from scripts.small_models.alfworld.plays import Play, chain, oracle_plan, play, read_plays, write_plays
from scripts.small_models.alfworld.probes import taking
from scripts.small_models.alfworld.remaining import Came, came
from scripts.small_models.alfworld.samples import Renaming, actor_example, retrospective_example, smaller_room
from scripts.small_models.alfworld.searches import made_up_search
from scripts.small_models.alfworld.tokenizer import build_tokenizer
from scripts.small_models.alfworld.view import Goal, View, kind_of
from tests.unit.envs.alfworld_rooms import CLEAN_MUG, COOL_MUG, HEAT_POTATO, PUT_PLATE, READ_BOOK, ROOMS, TWO_MUGS, Room

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("textworld") is None, reason="needs pip install 'retro[alfworld]'"
)
PROMPTS = load_prompts("household")
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AlfworldTasks]:
    folder = tmp_path_factory.mktemp("rooms")
    for number, room in enumerate(ROOMS):
        room.write(folder / f"{room.kind}-{number}" / "trial_A")
    made = AlfworldTasks({"train": str(folder)}, workers=1, graded=True)
    yield made
    made.close()


def task_of(room: Room) -> Task:
    return Task("alfworld", f"{room.kind}-{ROOMS.index(room)}/trial_A", Split.TRAIN, room.kind)


def played(world: AlfworldTasks, room: Room, notes: Sequence[Sequence[Advice]], seed: int = 0, who: str = "a") -> Play:
    return play(task_of(room), world, notes, CHARACTERS[who], random.Random(seed))


def actions(attempt: Play) -> list[str]:
    """Those that the demonstrator meant."""
    return [step.action for number, step in enumerate(attempt.steps) if number not in attempt.slips]


def goes(attempt: Play) -> list[str]:
    return [action.removeprefix("go to ") for action in actions(attempt) if action.startswith("go to ")]


PLATE = Advice(Says.WHERE, ("cabinet 2",), "plate 1")
WRONG = Advice(Says.WHERE, ("countertop 1",), "plate 1")


@needs_engine
@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.kind)
def test_whoever_is_told_the_plan_follows_it_and_succeeds(world: AlfworldTasks, room: Room) -> None:
    attempt = played(world, room, [[Advice(Says.PLAN, room.walkthrough)]])
    assert actions(attempt) == list(room.walkthrough)
    assert attempt.success
    assert attempt.return_ == pytest.approx(1.0)
    assert oracle_plan(world.oracle(task_of(room)) or "") == room.walkthrough


@needs_engine
def test_it_goes_where_the_thing_is_said_to_be_right_or_wrong_the_newest_note_first(world: AlfworldTasks) -> None:
    assert goes(played(world, PUT_PLATE, [[PLATE]]))[0] == "cabinet 2"
    assert goes(played(world, PUT_PLATE, [[PLATE], [WRONG], [Advice(Says.VAGUE)]]))[0] == "countertop 1"
    assert goes(played(world, PUT_PLATE, [[WRONG], [PLATE]]))[0] == "cabinet 2"


@needs_engine
def test_it_tries_places_in_the_order_that_it_is_told_and_leaves_out_the_empty_ones(world: AlfworldTasks) -> None:
    asked = ("sinkbasin 1", "fridge 1")
    assert goes(played(world, PUT_PLATE, [[Advice(Says.TRY, asked)]]))[:2] == list(asked)
    others = tuple(place for place in View.of(played(world, PUT_PLATE, []).opening).places if place != "cabinet 2")
    first = {goes(played(world, PUT_PLATE, [[Advice(Says.EMPTY, others)]], seed))[0] for seed in range(8)}
    assert first == {"cabinet 2"}


@needs_engine
@pytest.mark.parametrize("who", CHARACTERS)
def test_without_notes_it_goes_through_the_places_in_order_and_opens_what_is_closed(
    world: AlfworldTasks, who: str
) -> None:
    attempts = [played(world, PUT_PLATE, [], seed, who) for seed in range(8)]
    assert len({goes(attempt)[0] for attempt in attempts}) > 2
    for attempt in attempts:
        order = View.of(attempt.opening).places[:: -1 if CHARACTERS[who].backwards else 1]
        searched = list(dict.fromkeys(goes(attempt)))[:-1]  # the last one is where the plate goes
        start = order.index(searched[0])
        assert searched == [*order[start:], *order[:start]][: len(searched)]
        closed = {step.action.removeprefix("go to ") for step in attempt.steps if step.observation.endswith("closed.")}
        assert {f"open {place}" for place in closed} <= set(actions(attempt))


@needs_engine
def test_a_slip_does_nothing_and_what_follows_it_is_what_would_have_been_done(world: AlfworldTasks) -> None:
    clumsy = replace(CHARACTERS["a"], slips=0.4)
    slips: list[Step] = []
    for seed in range(6):
        attempt = play(task_of(PUT_PLATE), world, [[PLATE]], clumsy, random.Random(seed))
        slips += [attempt.steps[number] for number in attempt.slips]
        assert actions(attempt) == list(PUT_PLATE.walkthrough)
    assert len(slips) > 6
    useless = ("look", "inventory")
    assert all(step.observation.startswith("Nothing happens") or step.action in useless for step in slips)


@needs_engine
@pytest.mark.parametrize(("room", "verb"), [(HEAT_POTATO, "heat"), (COOL_MUG, "cool"), (CLEAN_MUG, "clean")])
def test_it_treats_the_thing_when_a_note_says_so_and_sometimes_forgets_it(
    world: AlfworldTasks, room: Room, verb: str
) -> None:
    def treats(notes: Sequence[Sequence[Advice]]) -> list[bool]:
        attempts = [played(world, room, notes, seed) for seed in range(8)]
        return [any(action.startswith(verb) for action in actions(attempt)) for attempt in attempts]

    assert all(treats([[Advice(Says.TREAT, (verb,))]]))
    assert len(set(treats([]))) == 2


@needs_engine
def test_two_things_go_to_the_place_that_is_named_for_both(world: AlfworldTasks) -> None:
    place = next(action.rpartition(" to ")[2] for action in TWO_MUGS.walkthrough if action.startswith("move"))
    attempts = [played(world, TWO_MUGS, [[Advice(Says.TOGETHER, (place,))]], seed) for seed in range(4)]
    for attempt in attempts:
        moves = [action for action in actions(attempt) if action.startswith("move")]
        assert moves
        assert all(action.endswith(f" to {place}") for action in moves)
    assert any(attempt.success for attempt in attempts)


@needs_engine
def test_a_plan_that_cannot_be_carried_out_is_dropped(world: AlfworldTasks) -> None:
    attempt = played(world, PUT_PLATE, [[PLATE], [Advice(Says.PLAN, ("go to fridge 1", "take mug 9 from fridge 1"))]])
    assert actions(attempt)[:2] == ["go to fridge 1", "take mug 9 from fridge 1"]
    assert attempt.success


@needs_engine
def test_a_play_of_the_lamp_ends_under_it(world: AlfworldTasks) -> None:
    attempts = [played(world, READ_BOOK, [], seed) for seed in range(6)]
    assert any(attempt.success for attempt in attempts)
    assert {actions(attempt)[-1] for attempt in attempts if attempt.success} == {"use desklamp 1"}


@needs_engine
def test_plays_are_kept_and_an_interrupted_file_goes_on(
    world: AlfworldTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task_of(room) for room in (PUT_PLATE, READ_BOOK, COOL_MUG)]
    write_plays(tasks, world, "a", 1, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text()
    assert whole.count("\n") == 3
    (tmp_path / "cut.jsonl").write_text(whole[: whole.index("\n") + 1] + '{"task": "half a li')
    write_plays(tasks, world, "a", 1, tmp_path / "cut.jsonl")
    assert read_plays(tmp_path / "cut.jsonl") == read_plays(tmp_path / "whole.jsonl")


@needs_engine
def test_what_a_failed_play_shows_is_true_and_wrong_notes_are_not(world: AlfworldTasks) -> None:
    lies = {thing: place for place, things in PUT_PLATE.places.items() for thing in things}
    rng = random.Random(0)
    failures = []
    for seed in range(12):
        attempt = played(world, COOL_MUG, [[Advice(Says.WHERE, ("countertop 1",), "mug 1")]], seed)
        failures += [] if attempt.success else [attempt]
    assert failures
    for attempt in failures:
        found = reflections.find(attempt.opening, attempt.steps, attempt.notes)
        assert all(lies[thing] == place for thing, place in found.seen.items())
        assert not set(found.empty) & set(found.seen.values())
        assert not set(found.fresh) & set(found.view.searched)
        treated = any(action.startswith("cool") for action in actions(attempt))
        assert found.forgotten == ("" if treated else "cool")
        said = reflections.useful(found, rng, each=1.0)
        assert said
        repaired = played(world, COOL_MUG, [said])
        assert repaired.success


@needs_engine
def test_samples_learn_the_meant_actions_alone(world: AlfworldTasks) -> None:
    rng = random.Random(1)
    for attempt in chain(task_of(TWO_MUGS), world, "a", rng):
        example = actor_example(attempt, TOKENIZER, PROMPTS, PHRASINGS["a"], rng)
        learnt = [token for token, flag in zip(example.prefix, example.learnt, strict=True) if flag]
        lines = TOKENIZER.decode(learnt).split("\n")[:-1]
        assert [line.split()[0] for line in lines] == [action.split()[0] for action in actions(attempt)]
        assert TOKENIZER.unk_token_id not in example.prefix


@needs_engine
def test_a_renamed_play_keeps_its_meaning(world: AlfworldTasks) -> None:
    attempt = played(world, COOL_MUG, [[Advice(Says.WHERE, ("countertop 1",), "mug 1")]])
    view = View.of(attempt.opening)
    kinds: set[str] = set()
    for seed in range(12):
        renamed = Renaming(attempt, random.Random(seed)).play(attempt)
        other = View.of(renamed.opening)
        places = dict(zip(view.places, other.places, strict=True))
        assert len(set(other.places)) == len(places)
        assert {kind_of(places[f"{kind} 1"]) for kind in TOOLS.values()} == set(TOOLS.values())
        assert (other.goal.kind, other.goal.verb) == (view.goal.kind, view.goal.verb)
        assert other.goal.place in map(kind_of, other.places)
        assert renamed.notes[0][0].names == (places["countertop 1"],)
        assert kind_of(renamed.notes[0][0].thing) == other.goal.thing
        assert goes(renamed) == [places.get(place, place) for place in goes(attempt)]
        kinds.update(map(kind_of, other.places))
    unseen = Play("you see a shelf 1, and a safe 1.\nYour task is to: put a mug in safe.", (), (), 0, False)
    unseen = replace(unseen, steps=(Step("go to shelf 1", "On the shelf 1, you see a plate 1.", 0.0),))
    for seed in range(200):
        renamed = Renaming(unseen, random.Random(seed)).play(unseen)
        assert View.of(renamed.opening).goal.thing not in renamed.steps[0].observation
    assert len(kinds) > 2 * len(set(map(kind_of, view.places)))


@needs_engine
def test_a_smaller_room_keeps_what_the_play_has_to_do_with(world: AlfworldTasks) -> None:
    attempt = played(world, PUT_PLATE, [[PLATE]])
    sizes = set()
    for seed in range(12):
        smaller = smaller_room(attempt, random.Random(seed))
        assert smaller.steps == attempt.steps
        places = View.of(smaller.opening).places
        assert {*goes(attempt), "cabinet 2"} & {*View.of(attempt.opening).places} <= set(places)
        assert list(places) == [place for place in View.of(attempt.opening).places if place in places]
        sizes.add(len(places))
    assert len(sizes) > 2


@pytest.mark.parametrize("who", CHARACTERS)
def test_a_search_that_is_made_up_does_what_its_notes_say_and_finds_nothing(who: str) -> None:
    shelves = ", ".join(f"a shelf {number}" for number in range(1, 9))
    like = Play(f"you see {shelves}, and a drawer 1.\nYour task is to: put a mug in drawer.", (), (), 0.0, False)
    rng = random.Random(3)
    seen: set[Says] = set()
    for _ in range(60):
        search = made_up_search(like, CHARACTERS[who], rng)
        places = goes(search)
        assert "mug" not in "".join(step.observation for step in search.steps)
        assert set(places) <= set(View.of(like.opening).places)
        assert len(set(places)) == len(places)
        if len(search.notes) > 1 or len(search.notes[0]) > 1:
            continue
        [[advice]] = search.notes
        seen.add(advice.says)
        match advice.says:
            case Says.WHERE:
                assert places[0] == advice.names[0]
            case Says.TRY:
                assert tuple(places[: len(advice.names)]) == advice.names[: len(places)]
            case Says.EMPTY:
                free = 9 - len(advice.names)
                assert not set(places[:free]) & set(advice.names)
    assert {Says.WHERE, Says.TRY, Says.EMPTY} <= seen


@needs_engine
def test_reflections_stand_behind_one_prompt(world: AlfworldTasks) -> None:
    attempt = next(one for seed in range(40) if not (one := played(world, COOL_MUG, [], seed)).success)
    example = retrospective_example(attempt, TOKENIZER, PROMPTS, PHRASINGS["all"], random.Random(0), count=4)
    assert len(example.branches) == 4
    assert not any(example.learnt)
    assert all(branch[-1] == TOKENIZER.eos_token_id for branch in example.branches)
    assert TOKENIZER.unk_token_id not in [*example.prefix, *(token for branch in example.branches for token in branch)]


def test_what_the_actor_takes_is_counted_where_the_thing_is_seen_and_where_not() -> None:
    opening = "you see a shelf 1, a safe 1, and a drawer 1.\nYour task is to: put a mug in drawer."
    steps = (
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 2, and a plate 1."),
        ("go to safe 1", "You arrive at safe 1. The safe 1 is closed."),
        ("open safe 1", "You open the safe 1. The safe 1 is open. In it, you see a plate 3."),
        ("take mug 1 from safe 1", "Nothing happens."),
        ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a mug 2, and a plate 1."),
        ("take mug 2 from shelf 1", "You pick up the mug 2 from the shelf 1."),
        ("go to drawer 1", "You arrive at drawer 1. The drawer 1 is open. In it, you see nothing."),
        ("look", "You are facing the drawer 1."),
    )
    trajectory = Trajectory(opening, tuple(Step(action, seen, 0.0) for action, seen in steps))
    task = Task("alfworld", "one", Split.VALIDATION)
    episode = Episode("", task, 0, trajectory, 0.0, False, StopReason.HORIZON)
    found = taking([episode])
    assert found["takes the thing where it is seen"] == 0.5
    assert found["takes anything where it is not seen"] == 1.0
    crowd = ", ".join(f"a pen {number}" for number in range(1, 6))
    full = Step("go to shelf 1", f"You arrive at shelf 1. On the shelf 1, you see {crowd}, and a mug 2.", 0.0)
    wrong = Step("take mug 1 from shelf 1", "Nothing happens.", 0.0)
    found = taking([replace(episode, trajectory=Trajectory(opening, (full, wrong)))])
    assert found["takes the thing among 6 or more"] == found["takes the thing where it is seen"] == 0.0


def test_a_beginning_has_earned_what_its_steps_earned() -> None:
    steps = tuple(Step(f"go to drawer {number}", "", reward) for number, reward in enumerate((0.0, 0.5, 0.25)))
    begun = beginning(Play("", (), steps, 0.75, False), 2)
    assert (begun.steps, begun.return_) == (steps[:2], 0.5)


def test_chains_write_about_each_failure_until_a_task_is_solved() -> None:
    solved_at = {"a": 0, "b": 2, "c": 9}
    tasks = [Task("alfworld", id, Split.VALIDATION) for id in solved_at]
    written: list[tuple[str, int]] = []

    def play_all(trial: int) -> dict[str, Episode]:
        return {
            task.id: Episode("", task, trial, Trajectory("", ()), 0.0, solved_at[task.id] == trial, StopReason.HORIZON)
            for task in tasks
        }

    found = writers.chains(3, play_all, lambda failed: written.append((failed.task.id, failed.trial)))
    assert found == [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert written == [("b", 0), ("c", 0), ("b", 1), ("c", 1), ("c", 2), ("c", 3)]


@pytest.mark.parametrize(
    ("steps", "far"),
    [
        ([("go to desk 1", "On the desk 1, you see a pen 1.")], Came.NOWHERE),
        ([("go to desk 1", "On the desk 1, you see a mug 2.")], Came.SEEN),
        ([("take mug 2 from desk 1", "You pick up the mug 2 from the desk 1.")], Came.HELD),
        (
            [
                ("take mug 2 from desk 1", "You pick up the mug 2 from the desk 1."),
                ("clean mug 2 with sinkbasin 1", "You clean the mug 2 using the sinkbasin 1."),
            ],
            Came.TREATED,
        ),
    ],
)
def test_a_failed_attempt_came_as_far_as_its_last_milestone(steps: list[tuple[str, str]], far: Came) -> None:
    opening = "you see a desk 1, and a sinkbasin 1.\nYour task is to: put a clean mug in desk."
    played = Trajectory(opening, tuple(Step(action, observation, 0.0) for action, observation in steps))
    task = Task("alfworld", "a", Split.TEST)
    assert came(Episode("0", task, 0, played, 0.0, False, StopReason.HORIZON)) is far


def test_names_are_counted_by_whether_the_failed_attempt_shows_them() -> None:
    task = Task("alfworld", "a", Split.TEST)
    step = Step("go to bed 1", "On the bed 1, you see a book 2.", 0.0)
    failed = Trajectory("you see a bed 1, and a desk 1.", (step,))
    first = Episode("0", task, 0, failed, 0.0, False, StopReason.HORIZON)
    reflection = Reflection("book 2 is on desk 1, not on desk 2. Take book 1. Take it at once.", "policy")
    second = replace(first, id="1", trial=1, parent="0", reflection=reflection)
    found = named([Record("sft", "", first), Record("sft", "", second), Record("one-shot", "", first)])
    assert found == {
        "sft": {("places", True): 1, ("places", False): 1, ("things", True): 1, ("things", False): 1},
    }


@pytest.mark.parametrize(
    ("task", "goal"),
    [
        ("put a mug in coffeemachine.", Goal("put", "mug", "coffeemachine")),
        ("put some soapbar on toilet.", Goal("put", "soapbar", "toilet")),
        ("put two cd in safe.", Goal("two", "cd", "safe")),
        ("find two pillow and put them in sofa.", Goal("two", "pillow", "sofa")),
        ("clean some knife and put it in drawer.", Goal("treat", "knife", "drawer", "clean")),
        ("put a hot mug in cabinet.", Goal("treat", "mug", "cabinet", "heat")),
        ("put a cool potato in microwave.", Goal("treat", "potato", "microwave", "cool")),
        ("look at bowl under the desklamp.", Goal("look", "bowl", "desklamp")),
        ("examine the pen with the floorlamp.", Goal("look", "pen", "floorlamp")),
    ],
)
def test_goals_are_read(task: str, goal: Goal) -> None:
    assert Goal.of(f"You are in the middle of a room.\nYour task is to: {task}") == goal


def test_another_goal_is_an_error() -> None:
    with pytest.raises(ValueError, match="no goal of ALFWorld's: 'sing'"):
        Goal.of("Your task is to: sing")


def test_the_tokenizer_is_lossless_on_every_sentence() -> None:
    rng = random.Random(0)
    names = {
        Says.WHERE: ("cabinet 12",),
        Says.EMPTY: ("drawer 3", "shelf 2", "bed 1"),
        Says.TRY: ("drawer 3",),
        Says.TOGETHER: ("sofa 1",),
        Says.PLAN: ("go to bed 1", "take mug 2 from bed 1", "clean mug 2 with sinkbasin 1", "use desklamp 1"),
        Says.STORY: ("toilet 1", "cart 1"),
    }
    for says in Says:
        for verb in ("clean", "heat", "cool"):
            for _ in range(60):
                text = PHRASINGS["all"].word(
                    Advice(says, (verb,) if says is Says.TREAT else names.get(says, ()), "mug 2"), rng
                )
                ids = TOKENIZER.encode(text)
                assert TOKENIZER.unk_token_id not in ids, text
                assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.tokenize("go to cabinet 12\nYou arrive at cabinet 12.") == [
        "go to",
        "cabinet 12",
        "\n",
        "You arrive at",
        "cabinet 12",
        ".",
    ]


def test_each_actor_has_sentences_that_the_other_has_not_and_neither_has_those_it_is_tested_with() -> None:
    for says in SENTENCES:
        a, b = set(PHRASINGS["a"].known(says)), set(PHRASINGS["b"].known(says))
        assert a - b
        assert b - a
        assert a | b == set(SENTENCES[says])
        assert not a & set(UNREAD["a"].known(says))
        assert not b & set(UNREAD["b"].known(says))


def test_the_newest_note_is_told_first() -> None:
    told = Told.by([[PLATE, Advice(Says.TRY, ("bed 1",))], [WRONG, Advice(Says.TRY, ("sofa 1", "bed 1"))]])
    assert told.where == [("plate 1", "countertop 1")]
    assert told.tries == ["sofa 1", "bed 1"]


def test_the_curriculum_ends_with_whole_plays() -> None:
    assert [steps_at(step, 100) for step in (0, 10, 30, 99)] == [6, 12, STEPS, STEPS]


def test_the_config_plays_in_the_rooms_that_the_models_have_not_seen() -> None:
    options = load_config("configs/alfworld-small.yaml").environment.options
    assert {split: tuple(rooms) for split, rooms in options["rooms"].items()} == alfworld.ROOMS
    assert options["steps"] == STEPS


SHIPPED = pytest.mark.skipif(not alfworld.FOLDER.is_dir(), reason=f"no {alfworld.FOLDER}: not a clone")


@SHIPPED
@pytest.mark.parametrize("role", ["actor", "retrospective"])
def test_the_shipped_models_are_those_that_the_script_builds(role: str) -> None:
    shape, tokenizer = alfworld.ROLES[role].shape, AutoTokenizer.from_pretrained(alfworld.FOLDER / role)
    config = AutoConfig.from_pretrained(alfworld.FOLDER / role)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert (config.hidden_size, config.num_hidden_layers) == (shape.hidden, shape.layers)
    assert config.vocab_size == len(TOKENIZER)


@SHIPPED
def test_the_shipped_actor_goes_where_a_note_sends_it() -> None:
    """In a room that is in no game, by sentences that it has read and by one that it has not."""
    model = AutoModelForCausalLM.from_pretrained(alfworld.FOLDER / "actor", dtype=torch.float32)
    opening = (
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 4, a cabinet 2, a drawer 9, "
        "a shelf 3, a garbagecan 1, and a sofa 2.\nYour task is to: put a mug in cabinet."
    )
    notes = {"mug 1 is in drawer 9.": "drawer 9", "Visit shelf 3 before anything else.": "shelf 3"}
    notes |= {"You will find mug 1 on sofa 2.": "sofa 2"}
    for note, place in notes.items():
        ids = [TOKENIZER.bos_token_id, *TOKENIZER.encode(PROMPTS.actor(opening, (), [note]))]
        written = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :]
        assert TOKENIZER.decode(written).strip() == f"go to {place}", note
