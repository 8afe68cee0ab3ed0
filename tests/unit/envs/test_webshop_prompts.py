"""The actor's prompt: its examples are what the environment really answers; it grows by appending."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from webshop_products import MUG, OAT_CREAM, write_shop

from retro.envs.webshop import WebshopTasks
from retro.prompts import load_prompts
from retro.types import Split, Step, Task, Trajectory

PROMPTS = load_prompts("webshop")
OPENING = "WebShop\nInstruction:\na lamp\n[Search]"
STEPS = (
    Step("search[lamp]", "[Back to Search]\nPage 1 (Total results: 0)", thought="I search."),
    Step("", "Invalid action: ''. Allowed, one at a time: search[words].", thought="Hm."),
    Step("click[Buy Now]", "You bought it.", 0.4, thought="I buy."),
)
EXAMPLES = re.findall(r"^WebShop\n.*?(?=\n\n)", PROMPTS.actor(OPENING, [], []), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("number", "goal_id"), [(0, f"{MUG}-human-1"), (1, f"{OAT_CREAM}-human-0")])
def test_an_example_is_a_real_play_that_succeeds(tmp_path: Path, number: int, goal_id: str) -> None:
    assert len(EXAMPLES) == 2
    world = WebshopTasks(str(write_shop(tmp_path)), splits="hashed").make(Task("webshop", goal_id, Split.TRAIN))
    opening, *turns = re.split(r"\nThought \d+: ", EXAMPLES[number])
    assert opening == world.reset()[0]
    success = False
    for count, turn in enumerate(turns, start=1):
        text, _, observation = turn.partition(f"\nObservation {count}: ")
        _, action = PROMPTS.parse(f" {text}")
        answer, _, _, _, info = world.step(action)
        assert answer == observation
        success = info["success"]
    assert success


def test_the_examples_are_short() -> None:
    assert sum(len(example) for example in EXAMPLES) < 4_500  # characters: some 1,300 tokens


def test_the_prompt_grows_by_appending() -> None:
    prompts = [PROMPTS.actor(OPENING, STEPS[:count], ["look twice."]) for count in range(4)]
    assert prompts[0].endswith(
        f"What you learnt from your earlier attempts at this task:\n- look twice.\n\n{OPENING}\nThought 1:"
    )
    for count, (prompt, longer, step) in enumerate(zip(prompts, prompts[1:], STEPS, strict=False), start=1):
        assert longer == (
            f"{prompt} {step.thought}\nAction {count}: {step.action}\nObservation {count}: {step.observation}\n"
            f"Thought {count + 1}:"
        )
    assert "learnt" not in PROMPTS.actor(OPENING, [], [])
    assert PROMPTS.actor_stop == ("\nObservation",)


@pytest.mark.parametrize(("return_", "said"), [(0.4, "its score is 0.40 of 1.00"), (0.0, "Its score is 0.00")])
def test_the_reflection_prompt_tells_all(return_: float, said: str) -> None:
    text = PROMPTS.reflection(Trajectory(OPENING, STEPS), return_, False, ["look twice."])
    assert said in text and "- look twice.\n" in text and text.endswith("\nReflection:")
    assert f"{OPENING}\nThought 1: I search.\nAction 1: search[lamp]\nObservation 1: [Back to Search]" in text
    assert "Thought 3: I buy.\nAction 3: click[Buy Now]\nObservation 3: You bought it.\n" in text
