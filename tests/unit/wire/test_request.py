"""What is sent, from the section and the sampling alone."""

from __future__ import annotations

from typing import Any

import pytest

from retro.config import ConfigError
from retro.types import Sampling, Usage
from retro.wire.request import RequestForm, RequestSection

SAMPLING = Sampling(temperature=1.0, top_p=0.5, max_tokens=9, stop=("a", "b", "c", "d", "e"), seed=3)


def form(**settings: Any) -> RequestForm:
    return RequestForm(RequestSection(model="m", **settings), "actor.base_url", "actor.")


def test_extra_parameters_are_sent_and_null_leaves_one_out() -> None:
    body = form(
        extra_body={"top_k": 5, "temperature": None, "stop": None}, limit_parameter="max_completion_tokens"
    ).body("x", SAMPLING)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "top_p": 0.5,
        "max_completion_tokens": 9,
        "seed": 3,
        "top_k": 5,
    }


def test_at_most_four_stop_strings_are_sent() -> None:
    assert form().body("x", SAMPLING)["stop"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"model": None}, "written for each call"),
        ({"messages": []}, "written for each call"),
        ({"temperature": 0.3}, "own key in the config"),
        ({"max_tokens": 3}, "own key in the config"),
        ({"stream": True}, "read whole"),
        ({"n": 2}, "for each call"),
    ],
)
def test_what_the_config_says_elsewhere_is_refused(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"actor\.extra_body.*{words}"):
        form(extra_body=extra)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http:///v1", "http://x:port/v1", "", "http://["])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    if url:
        with pytest.raises(ConfigError, match=r"actor\.base_url .*not a URL"):
            form(base_url=url)
    else:
        assert form(base_url=url).url == "https://api.openai.com/v1/chat/completions"


@pytest.mark.parametrize("url", ["http://user:hunter2@x/v1", "http://hunter2@x/v1", "https://:hunter2@x:90/v1"])
def test_a_url_with_a_password_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        form(base_url=url)
    assert "hunter2" not in str(caught.value)


def test_the_url_of_requests() -> None:
    assert form(base_url="http://x:8000/v1/").url == "http://x:8000/v1/chat/completions"
    assert form(base_url="http://x/v1", endpoint="completions").url == "http://x/v1/completions"


def test_the_estimate_is_a_token_for_four_bytes_and_the_longest_answer() -> None:
    assert form().estimate("abcde", SAMPLING) == Usage(2, 9)
    messages = [{"role": "system", "content": "abcd"}, {"role": "user", "content": "\N{SNOWMAN}\N{SNOWMAN}"}]
    assert form().estimate(messages, SAMPLING) == Usage(3, 9)  # type: ignore[arg-type]


def test_half_a_surrogate_pair_can_be_sent() -> None:
    text = form().body("a \ud83d b", SAMPLING)["messages"][0]["content"]
    assert text.encode() == b"a ? b"
    assert form().estimate("a \ud83d b", SAMPLING) == Usage(2, 9)
