"""OpenAI's messages as a trajectory."""

from __future__ import annotations

import pytest

from retro.agent.documents import read_trajectory
from retro.buffer.messages import MessagesError, without_messages
from retro.types import Step


def call(id: str, name: str, arguments: str) -> dict:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_each_tool_call_is_a_step_with_its_own_answer():
    messages = [
        {"role": "system", "content": "You can search."},
        {"role": "user", "content": [{"type": "text", "text": "Who wrote"}, {"type": "text", "text": "Emma?"}]},
        {
            "role": "assistant",
            "content": "I look in two places.",
            "refusal": None,
            "tool_calls": [call("a", "search", '{"q": "Emma"}'), call("b", "lookup", '{"id": 7}')],
        },
        {"role": "tool", "tool_call_id": "b", "content": "page 7"},
        {"role": "tool", "tool_call_id": "a", "content": "no result"},
        {"role": "user", "content": "Hurry."},
        {"role": "assistant", "content": "Charlotte Brontë"},
        {"role": "user", "content": "That is wrong."},
    ]
    document = without_messages({"messages": messages, "return": 0.25, "memory": ["Think."]})
    episode, memory = read_trajectory(document)
    assert episode.trajectory.opening == "You can search.\n\nWho wrote\nEmma?"
    assert episode.trajectory.steps == (
        Step('search({"q": "Emma"})', "no result", thought="I look in two places."),
        Step('lookup({"id": 7})', "page 7\n\nHurry."),
        Step("Charlotte Brontë", "That is wrong."),
    )
    assert (episode.return_, memory) == (0.25, ("Think.",))
    assert without_messages(messages) == without_messages({"messages": messages})


def test_a_trajectory_of_ours_stays_as_it_is():
    document = {"opening": "Look.", "steps": [{"action": "look", "observation": ""}]}
    assert without_messages(document) == document


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "the task is missing"),
        ([{"role": "assistant", "content": "look"}], "the task is missing"),
        ([{"role": "user", "content": "Look."}], "at least one of the assistant"),
        (
            [{"role": "user", "content": "Look."}, {"role": "tool", "tool_call_id": "x", "content": ""}],
            "messages.1: tool",
        ),
        ([{"role": "robot", "content": "Look."}], "0.role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "message 0 has a part of type image_url",
        ),
        (["Look."], "not a list of messages: 0"),
        ({"messages": "Look."}, "not a list of messages"),
        ({"messages": [], "opening": "Look."}, "messages and opening say the same twice"),
    ],
)
def test_what_is_not_a_conversation_is_named(document, says):
    with pytest.raises(MessagesError, match=says):
        without_messages(document)
