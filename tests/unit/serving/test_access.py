"""Who may connect."""

from __future__ import annotations

import pytest

from retro.config import ConfigError
from retro.serving.access import Access, check_address, read_key
from retro.serving.failures import RequestError
from retro.serving.server import bind


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
def test_other_machines_need_a_key(host):
    with pytest.raises(ConfigError, match="RETRO_API_KEY is not set"):
        check_address(host, None)
    check_address(host, "key")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_none(host):
    check_address(host, None)


@pytest.mark.parametrize("value", ["two words", "ключ", "line\nend"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(monkeypatch, value):
    monkeypatch.setenv("RETRO_API_KEY", value)
    with pytest.raises(ConfigError, match="RETRO_API_KEY") as caught:
        read_key()
    assert value not in str(caught.value)


def test_an_empty_key_is_none(monkeypatch):
    monkeypatch.setenv("RETRO_API_KEY", " ")
    assert read_key() is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *((given, "The API key is missing: ") for given in ("", "Bearer ", "Basic key", "key")),
        *((given, "The API key is wrong: ") for given in ("Bearer kex", "Bearer key2", "Bearer ÿ")),
    ],
)
def test_a_wrong_key_is_refused(given, says):
    with pytest.raises(RequestError) as caught:
        Access("key").check({"authorization": given, "host": "localhost"})
    assert caught.value.status == 401
    assert says in caught.value.message


def test_the_right_key_is_enough():
    Access("key").check({"authorization": "bearer key", "host": "retro.example.org"})


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example:80", "[::1", "127.0.0.1@evil.example"])
def test_without_a_key_a_request_must_name_this_machine(host):
    with pytest.raises(RequestError) as caught:
        Access(None).check({"host": host})
    assert caught.value.status == 403
    for own in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        Access(None).check({"host": own})
        Access(None).check({"host": own, "origin": "http://localhost:3000"})


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost.evil.example", "null", ""])
def test_without_a_key_web_pages_of_other_sites_are_refused(origin):
    with pytest.raises(RequestError) as caught:
        Access(None).check({"host": "localhost", "origin": origin})
    assert (caught.value.status, caught.value.code) == (403, "foreign_origin")


def test_a_port_that_is_taken_is_told():
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        with pytest.raises(ConfigError, match="give another one"):
            bind("127.0.0.1", bound.getsockname()[1])
