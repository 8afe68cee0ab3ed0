"""Trajectories as users have them."""

import json

import pytest

from retro.agent.documents import TrajectoryError, read_trajectory
from retro.buffer.lines import read_line, write_line
from retro.buffer.splits import SplitRule
from retro.types import Episode, Reflection, Split, Step, StopReason, Task, Trajectory, to_json

TRAJECTORY = Trajectory("Your task is to …", (Step("look", "Nothing.", 0.25), Step("wait", "Still nothing.", 0.25)))
EPISODE = Episode(
    "id",
    Task("vault", "1", Split.TEST, "digit"),
    1,
    TRAJECTORY,
    0.5,
    False,
    StopReason.HORIZON,
    "parent",
    Reflection("not 3", "ppo"),
)
DOCUMENT = {
    "opening": "Your task is to …",
    "steps": [
        {"action": "look", "observation": "Nothing.", "reward": 0.25},
        {"action": "wait", "observation": "Still nothing.", "reward": 0.25},
    ],
}


@pytest.mark.parametrize("value", [TRAJECTORY, EPISODE, DOCUMENT, json.loads(json.dumps(to_json(EPISODE)))])
def test_every_form_is_the_same_trajectory(value):
    episode, memory = read_trajectory(value)
    assert episode.trajectory == TRAJECTORY
    assert episode.return_ == 0.5
    assert episode.failed
    assert memory is None


def test_messages_are_a_trajectory():
    messages = [
        {"role": "user", "content": "Your task is to …"},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "Nothing."},
    ]
    read = Trajectory("Your task is to …", (Step("look", "Nothing."),))
    assert read_trajectory(messages)[0].trajectory == read
    episode, memory = read_trajectory({"messages": messages, "return": 0.5, "memory": ["a"]})
    assert (episode.trajectory, episode.return_, memory) == (read, 0.5, ("a",))


def test_an_episode_as_json_is_the_episode():
    assert read_trajectory(json.loads(json.dumps(to_json(EPISODE))))[0] == EPISODE


def test_what_the_document_says_is_taken():
    episode, memory = read_trajectory({**DOCUMENT, "return": 0.1, "success": True, "memory": ["a", "b"]})
    assert (episode.return_, episode.success, memory) == (0.1, True, ("a", "b"))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("look", "JSON object .* not str"),
        ([], "the task is missing"),
        ({"opening": "?"}, "steps: there must be at least one"),
        ({"opening": "?", "steps": []}, "steps"),
        ({"opening": "?", "steps": [{"action": "look"}]}, r"steps\.0\.observation: Field required"),
        ({**DOCUMENT, "retrun": 1}, "retrun"),
        ({**DOCUMENT, "return": "much"}, "return"),
        ({"trajectory": {"steps": []}}, r"trajectory\.opening: Field required"),
        ({}, "opening and steps, or messages, are missing"),
        ({"messages": [], "opening": "?"}, "say the same twice"),
        ({**to_json(EPISODE), "environment": "another"}, "task"),
    ],
)
def test_anything_else_is_refused_by_its_key(value, words):
    with pytest.raises(TrajectoryError, match=words):
        read_trajectory(value)


@pytest.mark.parametrize(
    "value",
    [
        {**DOCUMENT, "return": float("nan")},
        {**DOCUMENT, "memory": ["\ud800"]},
        {**DOCUMENT, "opening": "\udc00"},
        {"opening": "?", "steps": [{"action": "a", "observation": "b", "reward": float("inf")}]},
        {"opening": "?", "steps": [{"action": "a", "observation": "b", "reward": 1e308}] * 10},
        {**DOCUMENT, "memory": [object()]},
        {**to_json(EPISODE), "return_": float("inf")},
        {**to_json(EPISODE), "info": {"a": 10**30}},
        Trajectory("?", (Step("a", "b", float("nan")),)),
    ],
)
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(TrajectoryError, match="not a trajectory: "):
        read_trajectory(value)


def test_nesting_is_bounded():
    info: dict = {}
    for _ in range(20_000):
        info = {"a": info}
    with pytest.raises(TrajectoryError, match="not a trajectory: "):
        read_trajectory({**to_json(EPISODE), "info": info})


def test_numbers_of_numpy_are_numbers():
    numpy = pytest.importorskip("numpy")
    step = {"action": "a", "observation": "b", "reward": numpy.float32(0.5)}
    assert read_trajectory({"opening": "?", "steps": [step]})[0].return_ == 0.5


def test_a_line_of_a_buffers_export_is_read_too_and_a_buffer_takes_an_episode_as_to_json_writes_it():
    line = write_line(EPISODE)
    assert read_trajectory(json.loads(line)) == (EPISODE, None)
    assert read_line(json.dumps(to_json(EPISODE)).encode(), SplitRule()).episode == EPISODE
