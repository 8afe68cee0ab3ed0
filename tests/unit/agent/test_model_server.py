"""What goes wrong between an export and the server that should write its reflections, told with the remedy."""

from __future__ import annotations

import gzip
import json
from http.server import ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from retro import RetrospectiveModel
from retro.agent.records import ExportError, ExportRecord
from retro.cli.app import app
from retro.config import ConfigError
from retro.wire.failures import QuotaError
from tests.unit.agent.choices_server import DOCUMENT, NAME, Handler, served

SECRET = "sk-this-must-not-leak-7d21"


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it(served_export, server):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_address[1]}/v1"
    with pytest.raises(ConfigError) as caught:
        RetrospectiveModel.load(served_export, device="cpu", server=url)
    assert url in str(caught.value)
    assert "no answer" in str(caught.value)
    assert f"vllm serve {ExportRecord.read(served_export).base.name}" in str(caught.value)
    assert f"--lora-modules {NAME}={served_export / 'adapter'}" in str(caught.value)


def test_a_model_that_the_server_does_not_know_is_told_beside_those_that_it_knows(served_export, server):
    with pytest.raises(ConfigError, match=rf"no model 'mine'; it has: a-base, {NAME}; .*server_model[\s\S]*vllm serve"):
        served(served_export, server, server_model="mine")


def test_a_url_that_is_no_apis_is_told(served_export, server):
    with pytest.raises(ConfigError, match=r"does the URL \(server\) end in /v1\?"):
        RetrospectiveModel.load(served_export, device="cpu", server=server.url.removesuffix("/v1"))
    with pytest.raises(ConfigError, match=r"^server 'localhost:8000': not a URL"):
        RetrospectiveModel.load(served_export, device="cpu", server="localhost:8000")
    with pytest.raises(ConfigError, match="password") as caught:
        RetrospectiveModel.load(served_export, device="cpu", server="http://me:hidden@localhost:8000/v1")
    assert "hidden" not in str(caught.value)


def test_an_export_without_a_name_must_be_given_one(altered, server):
    folder = altered(served_name="")
    with pytest.raises(ExportError, match=r"give server_model[\s\S]*vllm serve"):
        served(folder, server)
    assert served(folder, server, server_model=NAME).reflect(DOCUMENT).text.startswith("not ")


def test_a_plain_adapter_is_served_under_a_given_name(served_export, server):
    model = served(served_export / "adapter", server, prompts="household", server_model=NAME)
    assert model.reflect(DOCUMENT).text.startswith("not ")
    with pytest.raises(ExportError, match="names no prompts"):
        served(served_export / "adapter", server, server_model=NAME)
    with pytest.raises(ExportError, match="give server_model"):
        served(served_export / "adapter", server, prompts="household")


def test_a_name_without_a_server_is_refused(served_export):
    with pytest.raises(ValueError, match="give server"):
        RetrospectiveModel.load(served_export, server_model=NAME)


def test_the_command_takes_the_same_options(served_export, server, tmp_path):
    document = tmp_path / "trajectory.json"
    document.write_text(json.dumps(DOCUMENT))
    command = ["reflect", str(served_export), "--trajectory", str(document), "--server"]
    done = CliRunner().invoke(app, [*command, server.url, "--no-scores", "--json"], catch_exceptions=False)
    assert [item["score"] for item in json.loads(done.stdout)["candidates"]] == [None]
    done = CliRunner().invoke(app, [*command, server.url, "--server-model", "mine"])
    assert isinstance(done.exception, ConfigError)
    assert "no model 'mine'" in str(done.exception)


def test_a_tokenizer_that_is_not_here_is_told_with_the_remedy(altered, served_export, server, tmp_path):
    section = ExportRecord.read(served_export).model.model_copy(update={"base": str(tmp_path / "gone")})
    with pytest.raises(ExportError, match=r"gone, whose tokenizer .* give base"):
        served(altered(model=section), server)
    assert not server.requests


@pytest.mark.parametrize(
    ("status", "body", "words", "requests"),
    [
        (200, b"<html>hello</html>", "not with completions: a web page: '<html>hello", 2),
        (200, b'{"choices": []}', "no choices", 2),
        (200, b'{"choices": [{"index": 0}]}', "a choice without a text", 2),
        (200, b'{"choices": [{"text": 7}]}', "a choice without a text", 2),
        (200, b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": -1}}', "its usage is not two numbers", 2),
        (401, b'{"error": {"message": "no"}}', "the key in OPENAI_API_KEY was refused", 1),
        (400, b'{"error": {"message": "maximum context length is 8"}}', r"HTTP 400.*model\.max_prompt_tokens", 1),
        (422, b'{"detail": "top_p"}', "HTTP 422.*top_p", 1),
        (503, b'{"error": {"message": "loading"}}', "HTTP 503.*loading", 2),
    ],
)
def test_whatever_else_the_server_says_is_told_and_what_may_pass_is_asked_again(
    served_export, server, status, body, words, requests
):
    server.reply = (status, body)
    with pytest.raises(ConfigError, match=words):
        served(served_export, server)
    assert len(server.requests) == requests


def test_the_key_is_sent_and_never_told(served_export, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    served(served_export, server)
    assert server.keys == [f"Bearer {SECRET}"]
    for status in (200, 400, 401, 500):
        server.reply = (status, json.dumps({"error": {"message": f"you sent {SECRET}"}}).encode())
        with pytest.raises(ConfigError) as caught:
            served(served_export, server)
        error: BaseException | None = caught.value
        while error is not None:
            assert SECRET not in repr(error)
            error = error.__context__
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        served(served_export, server)


@pytest.mark.parametrize("status", [200, 400, 500])
def test_an_answer_is_not_read_beyond_its_limit(served_export, server, status, monkeypatch):
    monkeypatch.setattr("retro.retrospective.served.MAX_RETRIES", 0)
    for body, headers in ((b" " * 2**22, {}), (gzip.compress(b" " * 2**22), {"content-encoding": "gzip"})):
        server.reply, server.headers = (status, body), headers
        with pytest.raises(ConfigError, match=r"RemoteProtocolError: an answer longer than 2,097,152 bytes"):
            served(served_export, server)


def test_a_redirect_is_told_and_not_followed(served_export, server):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        target = f"http://127.0.0.1:{closed.server_address[1]}/v1"
    server.reply, server.headers = (307, b""), {"location": target}
    with pytest.raises(ConfigError, match=rf"redirects to '{target}' \(HTTP 307\).*give the URL that it redirects to"):
        served(served_export, server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_wait_stops_at_once_with_the_time_to_go_on(served_export, server, status):
    server.reply, server.headers = (status, b'{"error": {"message": "daily quota"}}'), {"retry-after": "3600"}
    with pytest.raises(QuotaError, match=r"daily quota.*asks to wait 3,600 s, until 20.*run the same command again"):
        served(served_export, server)
    assert len(server.requests) == 1


def test_an_escaped_key_is_in_no_reflection_and_no_list(served_export, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    model = served(served_export, server, scores=False)
    escaped = SECRET.replace("s", "\\u0073")
    server.reply = (200, f'{{"choices": [{{"text": "you sent {escaped} \\ud83d\\u0000!"}}]}}'.encode())
    assert model.reflect(DOCUMENT).text == "you sent *** ??!"
    for body in (b'{"choices": "%s"}' % escaped.encode(), b'{"choices": "%s"}'.replace(b"%s", SECRET.encode("utf-16"))):
        server.reply = (200, body)
        with pytest.raises(ConfigError, match=r"not with completions.*\*\*\*"):
            served(served_export, server)
    server.reply, server.models = None, [f"a model of {SECRET}", *map(str, range(30))]
    with pytest.raises(ConfigError, match=r"it has: a model of \*\*\*, 0, .*, 18 and 11 more;"):
        served(served_export, server, server_model="mine")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 20_000, "nested deeper"),
        (b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 9223372036854775808}}', "beyond 64 bits"),
        (b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 2147483648}}', "its usage is not two numbers"),
        (b'{"choices": [{"text": "a"}], "x": 1e999}', "not a finite number"),
    ],
)
def test_json_that_no_one_could_keep_is_refused(served_export, server, body, words):
    server.reply = (200, body)
    with pytest.raises(ConfigError, match=rf"not with completions: .*{words}"):
        served(served_export, server)


def test_a_reflection_longer_than_its_tokens_can_be_is_cut(served_export, server):
    model = served(served_export, server, scores=False)
    server.reply = (200, json.dumps({"choices": [{"text": "x" * 100_000}]}).encode())
    [reflection] = model.reflect(DOCUMENT).candidates
    assert (len(reflection.text), reflection.finish_reason) == (8 * 128, "length")
