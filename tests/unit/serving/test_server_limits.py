"""Batches, limits, failures and the end of a server, with a model that a test holds back."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx

from retro.serving.limits import Limits
from retro.serving.logs import JsonLines
from tests.unit.serving.conftest import about, held_service, running, until

PATH = "/v1/reflections"


def test_what_arrives_during_a_batch_is_the_next_batch_and_too_much_is_sent_away(held):
    service = held_service(held, Limits(active=3, waiting=1))
    with running(service) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, PATH, json=about("0"))
        held.begun.wait()
        others = [pool.submit(client.post, PATH, json=about(str(number))) for number in (1, 2, 3)]
        until(lambda: service.admission.active == 3 and service.admission.waiting == 1)
        refused = client.post(PATH, json=about("4"))
        assert client.get("/healthz").status_code == 200
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        held.free.set()
        texts = [future.result().json()["text"] for future in (first, *others)]
    assert texts == ["on 0", "on 1", "on 2", "on 3"]
    assert held.batches in ([1, 2, 1], [1, 3])  # the one that waited may come before the second batch begins


def test_a_request_that_lasts_too_long_is_given_up_and_its_place_is_free(held):
    service = held_service(held, Limits(active=1, waiting=0, seconds=0.2))
    with running(service) as client:
        late = client.post(PATH, json=about("late"))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        assert "0.2 s" in late.json()["error"]["message"]
        held.free.set()
        until(lambda: client.post(PATH, json=about("again")).status_code == 200)


def test_a_client_that_leaves_frees_its_place(held):
    service = held_service(held, Limits(active=1))
    body = json.dumps(about("gone")).encode()
    with running(service) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as leaving:
            head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            held.begun.wait()
            until(lambda: service.admission.active == 1)
        until(lambda: service.admission.active == 0)
        held.free.set()


def test_clients_that_leave_cannot_fill_the_memory_during_a_batch(held):
    service = held_service(held, Limits(active=1, waiting=2, seconds=0.05))
    with running(service) as client:
        statuses = [client.post(PATH, json=about(str(number))).status_code for number in range(5)]
        assert statuses == [504, 504, 504, 429, 429]
        held.free.set()
        until(lambda: client.post(PATH, json=about("again")).status_code == 200)


def test_a_failure_of_ours_shows_the_log_where_and_the_caller_nothing(held, caplog):
    held.free.set()
    with running(held_service(held, Limits())) as client:
        answer = client.post(PATH, json=about("break"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
        assert client.post(PATH, json=about("0")).status_code == 200
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    line = json.loads(JsonLines().format(record))
    assert (line["error"], line["at"].split(":")[0]) == ("RuntimeError", "conftest.py")
    assert "broken by" not in str(line) and "broken by" not in answer.text


def test_without_a_reward_model_one_reflection_is_drawn(held):
    held.free.set()
    with running(held_service(held, Limits())) as client:
        assert client.post(PATH, json=about("0", n=2)).json()["error"]["code"] == "no_reward_model"
        answer = client.post(PATH, json=about("0")).json()
    assert (answer["text"], answer["score"], len(answer["candidates"])) == ("on 0", None, 1)
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


HELD_SERVER = """
import asyncio, sys
from retro import RetrospectiveModel
from retro.prompts import load_prompts
from retro.serving.app import make_app
from retro.serving.limits import Limits
from retro.serving.logs import log_as_json
from retro.serving.server import bind, run_until_signal
from retro.serving.service import Service
from retro.types import Reflection

class Held:
    async def reflect(self, request):
        print("begun", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        return [Reflection("done", "held")]

log_as_json()
service = Service(RetrospectiveModel(Held(), load_prompts("household")), "held", Limits())
run_until_signal(make_app(service, None), Limits(), bind("127.0.0.1", 0))
service.close()
assert "torch" not in sys.modules
"""


def test_sigterm_answers_what_was_begun_and_refuses_the_rest():
    command = [sys.executable, "-c", HELD_SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process, ThreadPoolExecutor(1) as pool:
        try:
            url = json.loads(process.stderr.readline())["url"]

            def asked() -> httpx.Response:
                try:
                    return httpx.post(f"{url}{PATH}", json=about("0"), timeout=120, trust_env=False)
                except httpx.TransportError:
                    process.kill()  # nothing below must wait for it
                    raise

            begun = pool.submit(asked)
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)

            def refused() -> bool:
                try:
                    return httpx.get(f"{url}/readyz", trust_env=False).status_code != 200
                except httpx.TransportError:
                    return True

            until(refused)
            process.stdin.close()
            assert begun.result().json()["text"] == "done"
            assert process.wait(60) == 0
            assert [json.loads(line)["event"] for line in process.stderr][-2:] == ["request", "stopped"]
        finally:
            process.kill()
