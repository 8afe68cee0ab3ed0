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


def test_a_success_is_answered_and_not_recorded(client):
    answer = client.post(REFLECTIONS, json={"trajectory": {"messages": MESSAGES, "success": True}, "n": 1}).json()
    assert answer["text"] and answer["reflection_id"] is answer["candidates"][0]["reflection_id"] is None


def test_without_a_buffer_outcomes_are_refused(held):
    held.free.set()
    with running(held_service(held, Limits())) as client:
        answer = client.post(REFLECTIONS, json={"trajectory": MESSAGES}).json()
        assert answer["reflection_id"] is None
        refused = client.post(OUTCOMES, json={"reflection_id": f"{'0' * 32}-{'0' * 12}", "success": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_buffer")
