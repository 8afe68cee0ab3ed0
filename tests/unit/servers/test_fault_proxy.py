"""The proxy that breaks requests: each fault as a client sees it, and which request meets which."""

import asyncio
import json
from collections import Counter

import pytest

from tests.servers.completion_server import CompletionServer, next_action
from tests.servers.fault_proxy import Fault, FaultProxy, drawn
from tests.servers.wire import Request, encoded_request, listen, read_response

PROMPT = "places: cabinet 1 shelf 2\ntask: put mug 1 in shelf 2\n>"


def request(number: int = 0, endpoint: str = "completions") -> Request:
    chat = endpoint == "chat/completions"
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    body = {"model": "m", "max_tokens": 12, "seed": number, **asked}
    return Request("POST", f"/v1/{endpoint}", {"content-type": "application/json"}, json.dumps(body).encode())


async def ask(url: str, *requests: Request, seconds: float = 120.0):
    """The answers to requests on one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    answers = []
    try:
        async with asyncio.timeout(seconds):
            for each in requests:
                writer.write(encoded_request(each, "here"))
                answers.append(await read_response(reader))
        return answers
    finally:
        writer.close()


def through(rates: dict[Fault, float], client, seed: int = 0):
    """What ``client(url)`` returns, and the proxy's and the server's counts."""

    async def main():
        real = CompletionServer()
        server, port = await listen(real.answer)
        async with server, FaultProxy(f"http://127.0.0.1:{port}", rates, seed) as proxy:
            return await client(proxy.url), proxy.counts(), real.completions

    return asyncio.run(main())


def broken_by(fault: Fault, seconds: float = 120.0):
    """One answer, with that fault for certain."""
    [answer], counts, _ = through({fault: 1.0}, lambda url: ask(url, request(), seconds=seconds))
    assert counts["faults"] == {fault.value: 1} and counts["passed"] == 0
    return answer


def test_without_faults_it_passes_on_what_the_server_says():
    requests = [request(number, endpoint) for number in range(3) for endpoint in ("completions", "chat/completions")]
    answers, counts, completions = through({}, lambda url: ask(url, *requests))
    choices = [json.loads(answer.body)["choices"][0] for answer in answers]
    texts = [choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices]
    assert texts == [f" {next_action(PROMPT, number)}\n" for number in (0, 0, 1, 1, 2, 2)]
    assert {answer.status for answer in answers} == {200}
    assert completions == counts["passed"] == counts["requests"] == 6
    assert counts["faults"] == {} and counts["asked"] == {"1": 6} and counts["passed_again"] == 0


def test_what_was_answered_and_is_asked_again_is_told():
    _, counts, _ = through({}, lambda url: ask(url, request(), request(), request(1)))
    assert counts["passed_again"] == 1
    assert counts["asked"] == {"1": 1, "2": 1}


def test_the_servers_own_refusals_pass():
    requests = [Request("POST", "/v1/nothing", {}, b"{}"), Request("POST", "/v1/completions", {}, b"no JSON")]
    answers, _, completions = through({Fault.WRONG_TYPES: 1.0}, lambda url: ask(url, *requests))
    assert [answer.status for answer in answers] == [404, 400]
    assert "no /v1/nothing" in json.loads(answers[0].body)["error"]["message"]
    assert completions == 0


@pytest.mark.parametrize(
    ("fault", "status", "header"),
    [
        (Fault.RATE_LIMIT, 429, {}),
        (Fault.RETRY_AFTER, 429, {"retry-after": "1"}),
        (Fault.SERVER_ERROR, 500, {"content-type": "text/html"}),
    ],
)
def test_refusals(fault, status, header):
    answer = broken_by(fault)
    assert answer.status == status
    assert header.items() <= answer.headers.items()
    assert ("retry-after" in answer.headers) == (fault is Fault.RETRY_AFTER)


def test_a_hang_never_answers():
    with pytest.raises(TimeoutError):
        broken_by(Fault.HANG, seconds=0.3)


def test_a_drip_is_slower_than_the_timeout_and_not_silent():
    async def client(url):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(encoded_request(request(), "here"))
        begin = await reader.readexactly(5)
        writer.close()
        return begin

    begin, counts, _ = through({Fault.DRIP: 1.0}, client)
    assert begin == b"HTTP/"
    assert counts["faults"] == {"drip": 1} and counts["passed"] == 0


def test_a_cut_connection_breaks_inside_the_body():
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        broken_by(Fault.CUT)
    assert caught.value.partial.startswith(b'{"id"')
    assert caught.value.expected is not None and len(caught.value.partial) == -(-caught.value.expected // 2)


def test_malformed_json_is_a_whole_answer_of_status_200():
    answer = broken_by(Fault.MALFORMED)
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)


def test_wrong_types_are_json_of_every_kind():
    answers, _, _ = through({Fault.WRONG_TYPES: 1.0}, lambda url: ask(url, *(request(n) for n in range(60))))
    kinds = Counter()
    for answer in answers:
        body = json.loads(answer.body)
        assert answer.status == 200 and body["model"] == "m"
        wrong_usage = not isinstance(body["usage"], dict) or isinstance(body["usage"]["prompt_tokens"], str)
        right_choices = body["choices"] and isinstance(body["choices"][0], dict)
        wrong_text = not right_choices or not isinstance(body["choices"][0]["text"], str)
        assert wrong_usage != wrong_text
        kinds[json.dumps([body["choices"] if wrong_text else 0, body["usage"] if wrong_usage else 0])] += 1
    assert len(kinds) == 7


def test_rates_hold_and_do_not_depend_on_the_order():
    rates = {Fault.CUT: 0.05, Fault.HANG: 0.02, Fault.SERVER_ERROR: 0.13}
    bodies = [str(number).encode() for number in range(20_000)]
    faults = [drawn(rates, 0, body, 0) for body in bodies]
    shares = {fault: count / len(bodies) for fault, count in Counter(faults).items()}
    for fault, rate in rates.items():
        assert shares[fault] == pytest.approx(rate, abs=4 * (rate / len(bodies)) ** 0.5)
    assert faults == [drawn(rates, 0, body, 0) for body in bodies[::-1]][::-1]
    assert faults != [drawn(rates, 0, body, 1) for body in bodies]
    assert faults != [drawn(rates, 1, body, 0) for body in bodies]


def test_the_connection_to_the_server_is_kept_and_replaced_once_it_is_gone():
    async def main():
        real = CompletionServer()
        server, port = await listen(real.answer)
        async with FaultProxy(f"http://127.0.0.1:{port}", {}) as proxy:
            first = await ask(proxy.url, request(0), request(1))
            assert len(proxy._idle) == 1
            proxy._idle[0][1].close()
            await proxy._idle[0][1].wait_closed()
            second = await ask(proxy.url, request(2))
            server.close()
            return first + second

    assert [answer.status for answer in asyncio.run(main())] == [200] * 3


@pytest.mark.parametrize("rates", [{Fault.CUT: 0.7, Fault.HANG: 0.4}, {Fault.CUT: -0.1}])
def test_impossible_rates_are_refused(rates):
    with pytest.raises(ValueError, match="add up to at most 1"):
        FaultProxy("http://127.0.0.1:80", rates)


def test_a_target_without_a_port_is_refused():
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        FaultProxy("127.0.0.1", {})
