"""``POST /v1/reflections`` with the tiny model: the same answers as the model itself, and clear errors for the rest."""

from __future__ import annotations

import json
import logging
import random

import pytest

from retro.serving.logs import JsonLines
from tests.unit.serving.conftest import KEY, about, until

PATH = "/v1/reflections"
OUTCOMES = "/v1/outcomes"
ID = f"{'a' * 32}-{'a' * 12}"
SECRET = "content-that-must-not-be-logged"
JSON = {"Content-Type": "application/json"}
MANY = b"[" * 50_000
UNRATED = {"opening": "x", "steps": [{"action": "look", "observation": "nothing"}]}


def test_the_answer_is_the_models(client, model):
    document = about("You are in a room.", seed=5, n=2)
    answer = client.post(PATH, json=document).raise_for_status().json()
    own = model.reflect(document["trajectory"], n=2, seed=5)
    assert (answer["text"], answer["model"]) == (own.text, "tiny-0")
    assert answer["score"] == pytest.approx(own.score)
    assert [one["text"] for one in answer["candidates"]] == [one.text for one in own.candidates]
    assert answer["score"] == max(one["score"] for one in answer["candidates"])
    usage = answer["usage"]
    assert usage["prompt_tokens"] == own.candidates[0].usage.prompt_tokens
    assert usage["completion_tokens"] == sum(one["completion_tokens"] for one in answer["candidates"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert client.post(PATH, json=document).json()["text"] == own.text


def test_messages_are_answered_as_their_trajectory(client):
    messages = [
        {"role": "user", "content": "You are in a room."},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "nothing"},
    ]
    answers = [
        client.post(PATH, json=body).raise_for_status().json()
        for body in (about("You are in a room."), {"trajectory": {"messages": messages, "return": 0}})
    ]
    assert len({answer["text"] for answer in answers}) == 1
    assert all(len(answer["candidates"]) == 3 for answer in answers)


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"trajectory": NaN}', 400, "not a finite number"),
        (b'{"trajectory": {"opening": "\xff"}}', 400, "not UTF-8"),
        ('{"trajectory": {}}'.encode("utf-16"), 400, "not UTF-8"),
        (b'{"trajectory": {"opening": "\\ud800"}}', 400, "surrogate"),
        (b'{"trajectory": ' + MANY, 400, "nested deeper"),
        (b'{"n": 1' + b"0" * 5_000 + b"}", 400, "beyond 64 bits"),
        (b"[]", 422, "The body does not fit"),
        (b"{}", 422, "trajectory: Field required"),
        (b'{"trajectory": "look"}', 422, "trajectory"),
        (b'{"trajectory": {}, "model": "x"}', 422, "model: unknown key"),
        (b'{"trajectory": {}, "n": "8"}', 422, "n: "),
        (b'{"trajectory": {}, "n": 0}', 422, "n: "),
        (b'{"trajectory": {}, "seed": -1}', 422, "seed: "),
        (b'{"trajectory": {}}', 422, "opening and steps, or messages, are missing"),
        (json.dumps({"trajectory": UNRATED}).encode(), 422, "the trajectory has no return: "),
        (json.dumps(about("")).encode(), 422, "opening is empty"),
        (json.dumps(about("x", reflection_id=ID)).encode(), 404, "Unknown reflection_id: "),
        (b'{"trajectory": {}, "reflection_id": 1}', 422, "reflection_id: "),
        (b'{"trajectory": []}', 422, "the task is missing"),
        (b'{"trajectory": {"opening": "", "steps": []}}', 422, "at least one"),
        (b'{"trajectory": {"opening": "", "steps": [{"action": 1, "observation": ""}]}}', 422, "steps.0.action"),
        (json.dumps(about("x", n=5)).encode(), 422, "at most 4 candidates"),
        (json.dumps(about("look " * 1_000)).encode(), 422, "takes"),
        (json.dumps({"trajectory": {**about("x")["trajectory"], "return": 2}}).encode(), 422, "must be in [0, 1]"),
        (b'{"trajectory": "' + b"a" * 10_000_000 + b'"}', 413, "longer than 100,000 bytes"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_a_bad_body_gets_one_clear_sentence(client, content, status, says):
    assert_refused(client.post(PATH, content=content, headers=JSON), status, says)


def assert_refused(answer, status, says):
    """With one clear sentence."""
    assert answer.status_code == status
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["code"]
    assert "Traceback" not in answer.text and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b'{"reflection_id": ' + MANY, 400, "nested deeper"),
        ({}, 422, "reflection_id: "),
        ({"reflection_id": ID}, 422, "give return, success or both"),
        ({"reflection_id": None, "return": 1}, 422, "reflection_id: null means that the reflection was not recorded"),
        ({"reflection_id": ID.upper(), "return": 1}, 404, "Unknown reflection_id: "),
        ({"reflection_id": ID + "\n", "return": 1}, 404, "Unknown reflection_id: "),
        ({"reflection_id": "4e0c", "return": 1}, 404, "Unknown reflection_id: "),
        ({"reflection_id": ID, "return": 1.1}, 422, "return: "),
        ({"reflection_id": ID, "return": True}, 422, "return: "),
        ({"reflection_id": ID, "success": "yes"}, 422, "success: "),
        ({"reflection_id": ID, "success": True, "rating": 1}, 422, "rating: unknown key"),
        ({"reflection_id": ID, "success": True, "trajectory": {"opening": ""}}, 422, "at least one"),
        ({"reflection_id": ID, "success": True, "trajectory": []}, 422, "the task is missing"),
        ({"reflection_id": ID, "return": 1, "trajectory": {"opening": "", "return": 0}}, 422, "trajectory: return: "),
        ({"reflection_id": ID, "return": 1}, 404, "did not write a reflection with this id"),
        ({"reflection_id": ID, "return": 1, "trajectory": "a" * 100_000}, 413, "longer than 100,000 bytes"),
    ],
)
def test_a_bad_outcome_gets_one_clear_sentence(client, body, status, says):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert_refused(client.post(OUTCOMES, content=content, headers=JSON), status, says)


def test_a_body_of_unknown_length_is_cut_off_too(client):
    assert client.post(PATH, content=iter([b"[" * 50_000] * 4), headers=JSON).status_code == 413


@pytest.mark.parametrize("path", [PATH, OUTCOMES])
def test_damaged_bodies_never_break_the_server(client, path):
    document = about("You are in a room.", n=1)
    if path == OUTCOMES:
        id = client.post(PATH, json=document).json()["reflection_id"]
        document = {"reflection_id": id, "return": 0.5, "success": False, "trajectory": document["trajectory"]}
    whole, draws = json.dumps(document).encode(), random.Random(0)
    seen = set()
    for _ in range(40):
        body = bytearray(whole)
        for _ in range(draws.randint(1, 3)):
            place = draws.randrange(len(body))
            body[place : place + draws.randint(0, 3)] = draws.choice([b"", b'"', b"{", b"\xc3", b"0", b"null", b"\x00"])
        seen.add(client.post(path, content=bytes(body), headers=JSON).status_code)
    assert seen <= {200, 400, 422, *((404, 409) if path == OUTCOMES else ())} and {400, 422} <= seen


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("POST", PATH, {"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ("GET", "/nowhere", {"Authorization": ""}, 401, "invalid_api_key"),
        ("GET", "/nowhere", {}, 404, "no_such_route"),
        ("GET", "/openapi.json", {}, 404, "no_such_route"),
        ("POST", f"{PATH}/", {}, 404, "no_such_route"),
        ("GET", PATH, {}, 405, "wrong_method"),
        ("POST", PATH, {"Content-Type": "text/plain"}, 415, "not_json"),
    ],
)
def test_what_the_server_does_not_do_is_told(client, method, path, headers, status, code):
    answer = client.request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_probes_need_no_key(client):
    for path, state in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = client.get(path, headers={"Authorization": ""})
        assert (answer.status_code, answer.json()["status"]) == (200, state)


def test_the_log_has_neither_content_nor_keys(client, caplog):
    caplog.set_level(logging.INFO, "retro.serving")
    answer = client.post(PATH, json=about(SECRET, n=1)).raise_for_status()
    client.post(PATH, content=SECRET.encode(), headers=JSON)
    client.post(f"/{SECRET}?key={SECRET}", headers={"Authorization": f"Bearer {SECRET}"})

    def logged():
        return [json.loads(JsonLines().format(record)) for record in list(caplog.records)]

    client.post(OUTCOMES, json={"reflection_id": answer.json()["reflection_id"], "return": 0, "trajectory": [SECRET]})

    until(lambda: sum(line["event"] == "request" for line in logged()) == 4)  # each is logged after it was answered
    lines = logged()
    assert SECRET not in str(lines) and KEY not in str(lines)
    first, second, third, fourth = [line for line in lines if line["event"] == "request"]
    assert first["id"] == answer.headers["x-request-id"] == answer.json()["id"]
    assert (first["method"], first["route"], first["status"]) == ("POST", PATH, 200)
    assert first["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert (second["status"], second["code"]) == (400, "unreadable_body")
    assert (third["status"], third["route"]) == (401, "unknown")
    assert (fourth["route"], fourth["code"]) == (OUTCOMES, "invalid_trajectory")
