"""From a served reflection and its outcome to what training reads."""

from __future__ import annotations

import shutil

import pytest

from retro.buffer import ReplayBuffer
from retro.buffer.stats import buffer_stats
from retro.buffer.views import contexts, rated_reflections
from retro.serving.limits import Limits
from retro.types import Recalled, Split, Step, Task, Trajectory
from tests.unit.serving.conftest import held_service, recording, running

REFLECTIONS, OUTCOMES = "/v1/reflections", "/v1/outcomes"
MESSAGES = [
    {"role": "user", "content": "Put a mug in shelf 1."},
    {"role": "assistant", "content": "look"},
    {"role": "user", "content": "nothing"},
]
TRIED = Trajectory("Put a mug in shelf 1.", (Step("look", "nothing"),))
FAILED = {"messages": MESSAGES, "return": 0.25, "memory": ["Look again."], "split": "train"}


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'buffer.sqlite'}"


def test_outcomes_become_rated_reflections_also_after_a_restart(model, url, tmp_path):
    with ReplayBuffer(url) as buffer, running(recording(model, buffer)) as client:
        answer = client.post(REFLECTIONS, json={"trajectory": FAILED}).raise_for_status().json()
        first, second, _ = answer["candidates"]
        assert answer["reflection_id"] in {one["reflection_id"] for one in answer["candidates"]}
        chat = {"model": "tiny-0", "messages": [{"role": "user", "content": "I failed."}]}
        client.post("/v1/chat/completions", json=chat).raise_for_status()
        assert (buffer.count(), buffer_stats(buffer)[0].tuples) == (1, 0)
        outcome = {"reflection_id": first["reflection_id"], "return": 1, "trajectory": MESSAGES}
        reported = client.post(OUTCOMES, json=outcome).raise_for_status().json()
        assert (reported["return"], reported["success"]) == (1, True)
        for file in tmp_path.glob("buffer.sqlite*"):  # what a killed process leaves
            shutil.copy(file, tmp_path / f"copy-{file.name}")

    copy = f"sqlite:///{tmp_path / 'copy-buffer.sqlite'}"
    with ReplayBuffer(copy, create=False) as buffer, running(recording(model, buffer)) as client:
        assert client.post(OUTCOMES, json=outcome).raise_for_status().json()["episode_id"] == reported["episode_id"]
        changed = client.post(OUTCOMES, json={**outcome, "return": 0.5})
        assert (changed.status_code, changed.json()["error"]["code"]) == (409, "outcome_exists")
        client.post(OUTCOMES, json={"reflection_id": second["reflection_id"], "success": False}).raise_for_status()
        again = client.post(REFLECTIONS, json={"trajectory": FAILED}).raise_for_status().json()["candidates"][0]
        assert again["text"] == first["text"] and again["reflection_id"] != first["reflection_id"]
        client.post(OUTCOMES, json={"reflection_id": again["reflection_id"], "return": 0.5}).raise_for_status()

        rated = {(one.reflection.text, one.rating) for one in rated_reflections(buffer, "delta_return")}
        assert rated == {(first["text"], 0.75), (first["text"], 0.25), (second["text"], -0.25)}
        (failed,) = {context.episode.id for context in contexts(buffer)}
        attempt, retry = buffer.get(failed), buffer.get(reported["episode_id"])
    assert attempt.task == retry.task == Task("household", TRIED.opening, Split.TRAIN)
    assert (attempt.trial, attempt.trajectory, attempt.return_) == (1, TRIED, 0.25)
    assert attempt.recalled == Recalled(("Look again.",), ("reflection-0",))
    assert (retry.trial, retry.parent, retry.trajectory) == (2, failed, TRIED)
    assert retry.recalled == Recalled(("Look again.", first["text"]), ("reflection-0", "reflection-1"))
    assert (retry.reflection.source, retry.reflection.text) == ("tiny-0", first["text"])


def asked(client, number, follows=None, **keys):
    """The answer to a request about attempt ``number``, which was different from all others."""
    messages = [*MESSAGES[:2], {"role": "user", "content": f"nothing in {number}"}]
    document = {"messages": messages, "return": number / 10, **keys}
    return client.post(REFLECTIONS, json={"trajectory": document, "n": 1, "reflection_id": follows})


def test_an_attempt_that_names_the_reflection_before_it_becomes_one_episode(model, url):
    with ReplayBuffer(url) as buffer, running(recording(model, buffer)) as client:
        first = asked(client, 0).raise_for_status().json()
        second = asked(client, 1, first["reflection_id"]).raise_for_status().json()
        third = asked(client, 2, second["reflection_id"], memory=["Not what the buffer has."]).json()
        fourth = asked(client, 2, second["reflection_id"]).json()
        assert fourth["text"] == third["text"]  # what is stored is what the model was shown
        again = asked(client, 1, first["reflection_id"]).raise_for_status().json()
        assert again["text"] == second["text"]  # the server knows what the actor was shown
        same = {"reflection_id": first["reflection_id"], "return": 0.1}
        client.post(OUTCOMES, json=same).raise_for_status()
        last = asked(client, 9, third["reflection_id"], success=True).raise_for_status().json()
        assert last["text"] and last["reflection_id"] is None
        episodes = list(buffer.episodes())
        stats = buffer_stats(buffer)[0]
    assert [(one.trial, one.return_, len(one.trajectory.steps)) for one in episodes] == [
        *((0, 0.0, 1), (1, 0.1, 1), (2, 0.2, 1), (3, 0.9, 1))
    ]
    assert [one.parent for one in episodes] == [None, *(one.id for one in episodes[:3])]
    assert [one.reflection.text for one in episodes[1:]] == [one["text"] for one in (first, second, third)]
    assert episodes[2].recalled.entries == (first["text"], second["text"])
    assert episodes[3].success and stats.tuples == 3


def test_an_outcome_that_was_reported_is_the_attempt_only_with_its_trajectory(model, url):
    with ReplayBuffer(url) as buffer, running(recording(model, buffer)) as client:
        whole, bare = (asked(client, 0).json()["reflection_id"] for _ in range(2))
        messages = [*MESSAGES[:2], {"role": "user", "content": "nothing in 1"}]
        report = {"reflection_id": whole, "return": 0.1, "trajectory": messages}
        episode = client.post(OUTCOMES, json=report).raise_for_status().json()["episode_id"]
        assert asked(client, 1, whole).json()["reflection_id"] and buffer.count() == 2
        assert buffer.get(episode).trajectory.steps
        client.post(OUTCOMES, json={"reflection_id": bare, "return": 0.1}).raise_for_status()
        for id, number, says in ((bare, 1, "without its trajectory"), (whole, 2, "Another outcome")):
            refused = asked(client, number, id)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "outcome_exists")
            assert says in refused.json()["error"]["message"]
        assert buffer.count() == 3


@pytest.mark.parametrize(
    ("said", "recorded"),
    [({"success": True}, (1.0, True)), ({"return": 1}, (1.0, True)), ({"return": 0.5}, (0.5, False))],
)
def test_what_an_attempt_leaves_out_is_as_in_an_outcome(model, url, said, recorded):
    with ReplayBuffer(url) as buffer, running(recording(model, buffer)) as client:
        id = asked(client, 0).json()["reflection_id"]
        body = {"trajectory": {"messages": MESSAGES, **said}, "reflection_id": id}
        client.post(REFLECTIONS, json=body).raise_for_status()
        retry = list(buffer.episodes())[-1]
        assert (retry.return_, retry.success) == recorded
        assert client.post(OUTCOMES, json={"reflection_id": id, **said}).json()["episode_id"] == retry.id


def test_a_success_is_answered_and_not_recorded(client):
    answer = client.post(REFLECTIONS, json={"trajectory": {"messages": MESSAGES, "success": True}, "n": 1}).json()
    assert answer["text"] and answer["reflection_id"] is answer["candidates"][0]["reflection_id"] is None


def test_without_a_buffer_outcomes_are_refused(held):
    held.free.set()
    with running(held_service(held, Limits())) as client:
        answer = client.post(REFLECTIONS, json={"trajectory": MESSAGES, "reflection_id": None}).json()
        assert answer["reflection_id"] is None  # and no return had to be given
        named = client.post(REFLECTIONS, json={"trajectory": MESSAGES, "reflection_id": f"{'0' * 32}-{'0' * 12}"})
        refused = client.post(OUTCOMES, json={"reflection_id": f"{'0' * 32}-{'0' * 12}", "success": True})
    for answer in (refused, named):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_buffer")


def test_an_attempt_that_an_error_ended_is_no_outcome(model, url):
    with ReplayBuffer(url) as buffer, running(recording(model, buffer)) as client:
        first = asked(client, 0).json()["reflection_id"]
        refused = asked(client, 1, first, stop="actor_error")
        assert refused.status_code == 422 and "send it without reflection_id" in refused.json()["error"]["message"]
        assert buffer.count() == 1
