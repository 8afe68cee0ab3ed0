"""ALFWorld's prompts: what the examples show is what the engine answers."""

from __future__ import annotations

import re
import sys
from itertools import pairwise

import pytest

from retro.envs.alfworld.play import ACTIONS, engine_command
from retro.prompts import load_prompts
from retro.types import Step, Trajectory
from tests.unit.envs.alfworld_rooms import Room

OPENING = (
    "You are in the middle of a room. Looking quickly around you, you see a desk 1.\nYour task is to: put a pen away."
)
STEPS = (
    Step("go to desk 1", "You arrive at desk 1.", thought="I look at the desk."),
    Step("take pen 1", "Nothing happens.", thought="There it is."),
)
EXAMPLES = (
    Room(
        "pick_two_obj_and_place",
        "put two candle in cabinet.",
        "candle",
        "cabinet",
        {
            "cabinet 1": (),
            "cabinet 2": ("cloth 1",),
            "countertop 1": ("candle 1", "soapbar 1"),
            "garbagecan 1": (),
            "sinkbasin 1": (),
            "toilet 1": ("candle 2",),
        },
        (),
    ),
    Room(
        "pick_cool_then_place_in_recep",
        "cool some tomato and put it in diningtable.",
        "tomato",
        "diningtable",
        {
            "countertop 1": ("bread 1", "fork 1"),
            "countertop 2": ("tomato 1",),
            "diningtable 1": ("plate 1",),
            "fridge 1": ("egg 1",),
            "microwave 1": (),
            "sinkbasin 1": (),
        },
        (),
    ),
    Room(
        "look_at_obj_in_light",
        "examine the pen with the desklamp.",
        "pen",
        "desk",
        {
            "bed 1": ("pillow 1",),
            "desk 1": ("book 1",),
            "drawer 1": ("pen 1",),
            "sidetable 1": ("desklamp 1",),
        },
        (),
    ),
)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_engine_answers_as_the_example_shows(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("textworld", reason="pip install 'retro[alfworld]'")
    from retro.envs.alfworld.engine import CachedGame

    monkeypatch.setattr(sys, "argv", sys.argv)  # the planner's translator replaces them
    few_shot = load_prompts("alfworld").actor(OPENING, (), ()).partition(OPENING)[0]
    shown = few_shot.split("Your task is to: ")[1:]
    assert len(shown) == len(EXAMPLES)
    game = CachedGame(EXAMPLES[number].data())
    scene = game.start()
    _, room, task = scene.feedback.split("\n\n")
    assert f"{room}\n{task}\n" in few_shot
    turns = re.findall(r"^Action (\d+): (.+)\nObservation \1: (.+)$", shown[number], re.MULTILINE)
    assert [int(turn[0]) for turn in turns] == list(range(1, len(turns) + 1))
    for _, action, observation in turns:
        command = engine_command(action)
        assert command in scene.commands
        scene = game.step(command)
        assert scene.feedback == observation
    assert scene.won


def test_the_actors_prompt_grows_by_appending() -> None:
    prompts = load_prompts("alfworld")
    texts = [prompts.actor(OPENING, STEPS[:count], ["Look in the drawers."]) for count in range(3)]
    assert all(text.endswith(f"Thought {count}:") for count, text in enumerate(texts, 1))
    for shorter, longer in pairwise(texts):
        assert longer.startswith(shorter)
    assert texts[2].endswith(
        f"{OPENING}\nThought 1: I look at the desk.\nAction 1: go to desk 1\nObservation 1: You arrive at desk 1.\n"
        "Thought 2: There it is.\nAction 2: take pen 1\nObservation 2: Nothing happens.\nThought 3:"
    )
    assert "What you learnt from your earlier attempts at this task:\n- Look in the drawers.\n\nYou are in" in texts[0]
    assert "earlier attempts" not in prompts.actor(OPENING, (), ())


def test_the_actors_answer_is_understood() -> None:
    prompts = load_prompts("alfworld")
    assert prompts.actor_stop == ("\nObservation",)
    assert prompts.parse(" I open it.\nAction 3: open drawer 1") == ("I open it.", "open drawer 1")
    assert prompts.parse(" I do not know.") == ("I do not know.", "")


def test_every_action_is_explained() -> None:
    said = load_prompts("alfworld").actor(OPENING, (), ())
    verbs = {re.split(r" [A-Z]", action.strip())[0] for action in ACTIONS.split(",")}
    assert verbs >= {"go to", "open", "take", "put", "clean", "heat", "cool", "use", "examine", "look", "inventory"}
    assert [verb for verb in verbs if not re.search(rf"^(.+, )?{verb}( [A-Z]|$)", said, re.MULTILINE)] == []


def test_the_examples_fit_a_short_context() -> None:
    few_shot = load_prompts("alfworld").actor(OPENING, (), ()).partition(OPENING)[0]
    assert len(re.findall(r"\w+|[^\w\s]", few_shot)) < 1300


def test_the_reflection_prompt_has_it_all() -> None:
    prompts = load_prompts("alfworld")
    text = prompts.reflection(Trajectory(OPENING, STEPS), 0.5, False, ["Look in the drawers."])
    assert text.endswith("\nReflection:")
    assert "part of the way (score 0.50 of 1)" in text
    assert "- Look in the drawers.\n\nYou are in" in text
    assert "Thought 2: There it is.\nAction 2: take pen 1\nObservation 2: Nothing happens.\n" in text
    assert "score" not in prompts.reflection(Trajectory(OPENING, STEPS), 0.0, False, [])
