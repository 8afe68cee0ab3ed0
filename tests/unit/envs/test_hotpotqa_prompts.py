"""The actor's prompt: its three examples are what the environment really answers; it grows by appending."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from retro.envs.hotpotqa.documents import OfflineDocuments, Page
from retro.envs.hotpotqa.play import HotpotQA
from retro.envs.hotpotqa.questions import Question
from retro.prompts import load_prompts
from retro.types import Step

PROMPTS = load_prompts("hotpotqa")
PAGES = [
    (
        "Marta Ellingsvold",
        "Marta Ellingsvold (4 May 1871 – 19 January 1950) was a Norwegian civil engineer.",
        "She studied in Trondheim and worked for the port of Havnvik for most of her life.",
        "Her best known work is the Kallsund Bridge.",
    ),
    (
        "Kallsund Bridge",
        "The Kallsund Bridge is a swing bridge in Havnvik, Norway.",
        "It crosses the strait between the town and the island of Store Kall.",
        "The bridge is 212 metres long and has two fixed spans.",
        "Its steel was made in Sheffield.",
        "Until 1968 it also carried a tram line.",
        "The bridge was opened on 3 June 1909 by the mayor of Havnvik.",
    ),
    (
        "Lantern Weekly",
        "Lantern Weekly was a Canadian magazine of short stories, printed in Halifax.",
        "It was founded in 1902 by the brothers Amos and Peter Rudge.",
        "The last issue appeared in 1931.",
    ),
    (
        "Tin Kettle (magazine)",
        "Tin Kettle was a humorous Australian magazine.",
        "Its first issue was sold in Ballarat in March 1894.",
    ),
    ("The Tin Kettle Murders", "The Tin Kettle Murders is a crime novel of 1957 by Nora Halloway."),
    ("Amos Rudge", "Amos Rudge was a printer, who began as an apprentice in a factory of kettles."),
    (
        "Ilse Varga-Holt",
        "Ilse Varga-Holt (1884 – 1961) was an Austrian composer and pianist.",
        "She wrote four operas and more than sixty songs.",
    ),
    (
        "Tomaso Berardini",
        "Tomaso Berardini (1902 – 1977) was an Italian composer of film music.",
        "He taught at the conservatory of Parma.",
    ),
]
EXAMPLES = re.findall(r"^Question: .*?(?=\n\n)", PROMPTS.actor("Question: last?", [], []), re.DOTALL | re.MULTILINE)


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.splitlines()[0]))
def test_an_example_is_what_the_environment_answers(example: str) -> None:
    question = example.splitlines()[0].removeprefix("Question: ")
    turns = re.findall(r"^Action (\d): (.*)\nObservation (\d): (.*)$", example, re.MULTILINE)
    answer = turns[-1][1].removeprefix("Finish[").removesuffix("]")
    store = OfflineDocuments(Page(title, tuple(sentences)) for title, *sentences in PAGES)
    play = HotpotQA(Question("by hand", question, answer, "bridge", ()), store)
    assert play.reset()[0] == example.splitlines()[0]
    for number, (place, action, same_place, shown) in enumerate(turns, start=1):
        assert (place, same_place) == (str(number), str(number))
        observation, *_, info = play.step(action)
        assert observation == shown
    assert info["success"]


def test_it_grows_by_appending() -> None:
    step = Step("Search[Owl]", "A bird.", thought="I need to search Owl.")
    prompts = [
        PROMPTS.actor("Question: What is an owl?", [step] * count, ["Search Owl.", "Answer."]) for count in range(3)
    ]
    memory = "task:\n- Search Owl.\n- Answer.\n\nQuestion: What is an owl?\nThought 1:"
    assert prompts[0].endswith(f"What you learnt from your earlier attempts at this {memory}")
    for number, (prompt, longer) in enumerate(pairwise(prompts), start=1):
        turn = f" I need to search Owl.\nAction {number}: Search[Owl]\nObservation {number}: A bird.\n"
        assert longer == f"{prompt}{turn}Thought {number + 1}:"


def test_without_memory_nothing_is_said_of_earlier_attempts() -> None:
    assert "earlier attempts" not in PROMPTS.actor("Question: What is an owl?", [], [])


def test_what_an_actor_completes_is_read_back() -> None:
    answer = " I need to search Owl.\nAction 1: Search[Owl [bird]]"
    assert PROMPTS.parse(answer) == ("I need to search Owl.", "Search[Owl [bird]]")
    assert PROMPTS.actor_stop == ("\nObservation",)
