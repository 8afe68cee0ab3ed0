"""``/v1/chat/completions`` by the official client of OpenAI's API."""

from __future__ import annotations

import json

import openai
import pytest

from retro.buffer.messages import ChatMessage
from retro.serving.chat import trajectory_of
from retro.types import Trajectory
from tests.unit.serving.conftest import KEY, about

TEXT = "You are in a room. Your task is to look. I looked at the wall and saw nothing."


@pytest.fixture
def chat(client):
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, max_retries=0) as api:
        yield api


def asked(text: str, **options: object) -> dict:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "an earlier question"},
        {"role": "assistant", "content": "an earlier answer"},
        {"role": "user", "content": text},
    ]
    return {"model": "tiny-0", "messages": messages, "temperature": 0.1, "max_tokens": 100, **options}


def test_a_free_text_is_the_opening_of_a_trajectory(chat, model):
    own = model.reflect(Trajectory(TEXT), n=3, seed=7)
    answer = chat.chat.completions.create(**asked(TEXT, seed=7))
    assert answer.choices[0].message.content == own.text
    kept = next(one for one in own.candidates if one.text == own.text)
    assert answer.choices[0].finish_reason == kept.finish_reason
    assert answer.usage.prompt_tokens == kept.usage.prompt_tokens
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in own.candidates)
    assert (answer.model, answer.object) == ("tiny-0", "chat.completion")


def test_the_json_of_a_trajectory_is_that_trajectory(chat, model):
    trajectory = {**about("You are in a room.")["trajectory"], "return": 0.5}
    answer = chat.chat.completions.create(**asked(json.dumps(trajectory), seed=7))
    assert answer.choices[0].message.content == model.reflect(trajectory, n=3, seed=7).text


def test_a_stream_has_the_same_text(chat):
    whole = chat.chat.completions.create(**asked(TEXT, seed=7))
    chunks = list(
        chat.chat.completions.create(**asked(TEXT, seed=7, stream=True, stream_options={"include_usage": True}))
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chat.chat.completions.create(**asked(TEXT, stream=True)))


def test_without_a_seed_each_request_draws_another_reflection(chat):
    assert len({chat.chat.completions.create(**asked(TEXT)).choices[0].message.content for _ in range(4)}) > 1


def test_the_model_is_listed(chat):
    assert [model.id for model in chat.models.list()] == ["tiny-0"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "no model 'gpt'; it has 'tiny-0'"),
        ({"n": 2}, openai.UnprocessableEntityError, "n must be 1"),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, openai.UnprocessableEntityError, "tools"),
        ({"response_format": {"type": "json_object"}}, openai.UnprocessableEntityError, "response_format"),
        ({"stop": ["."]}, openai.UnprocessableEntityError, "stop is not supported"),
        ({"max_tokens": 7}, openai.UnprocessableEntityError, "may have 8 tokens"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, openai.UnprocessableEntityError, "last user message"),
        ({"messages": [{"role": "user", "content": '{"opening": 1}'}]}, openai.UnprocessableEntityError, "opening"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_answered_is_an_error_of_the_client(chat, options, error, says):
    with pytest.raises(error, match=says):
        chat.chat.completions.create(**asked(TEXT, **options))


def test_a_wrong_key_is_an_error_of_the_client(chat):
    with pytest.raises(openai.AuthenticationError):
        chat.with_options(api_key="wrong").chat.completions.create(**asked(TEXT))


@pytest.mark.parametrize("text", ["{look}", '{"thought": "look"}', '["opening"]', '{"opening": NaN}', '"opening"'])
def test_other_json_is_a_free_text(text):
    assert trajectory_of([ChatMessage(role="user", content=text)]) == Trajectory(text)
