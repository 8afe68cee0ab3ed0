"""Prompts and answers as tokens, with and without a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from retro.models.text import decode_response, encode_prompt, encode_response, end_tokens, unread_template_kwargs

TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }} : {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture
def chat(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_plain_prompt_begins_with_the_begin_token(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(tokenizer, "go to cabinet 2\n>")
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "go to cabinet 2\n>"
    messages = encode_prompt(tokenizer, [{"role": "user", "content": "look"}, {"role": "assistant", "content": ">"}])
    assert tokenizer.decode(messages[1:]) == "look\n>"


def test_a_chat_prompt_is_one_users_turn_and_the_opening_of_the_answer(chat: PreTrainedTokenizerBase) -> None:
    ids = encode_prompt(chat, "look")
    assert ids.count(chat.bos_token_id) == 1
    assert ids[-1] == chat.convert_tokens_to_ids(">")
    assert ids == encode_prompt(chat, [{"role": "user", "content": "look"}])


def test_an_answer_comes_back(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_response(tokenizer, "nothing in cabinet 2. try desk 1.")
    assert ids[-1] == tokenizer.eos_token_id
    assert decode_response(tokenizer, ids) == "nothing in cabinet 2. try desk 1."
    assert decode_response(tokenizer, ids[:-1]) == "nothing in cabinet 2. try desk 1."
    assert decode_response(tokenizer, []) == ""


def test_an_answer_needs_an_end_token(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_response(tokenizer, "look")
    assert decode_response(tokenizer, tokenizer.encode("look")) == "look"


TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


@pytest.fixture
def turns(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    """A chat tokenizer as Phi-3's: a turn ends by another token than a text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>", "<think>", "</think>"]}
    )
    tokenizer.chat_template = TURNS
    return tokenizer


def test_a_turn_ends_as_the_chat_template_says(turns: PreTrainedTokenizerBase) -> None:
    end, eos = turns.convert_tokens_to_ids("<|end|>"), turns.eos_token_id
    assert end_tokens(turns) == {end, eos}
    assert end_tokens(turns, GenerationConfig(eos_token_id=[eos, 7])) == {end, eos, 7}
    assert end_tokens(turns, GenerationConfig(eos_token_id=9)) == {end, eos, 9}
    assert end_tokens(turns, GenerationConfig()) == {end, eos}
    ids = encode_response(turns, "look")
    assert ids[-1] == end and decode_response(turns, ids) == "look"
    assert decode_response(turns, [*ids[:-1], eos]) == "look"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,  # nothing special follows an answer
        "{{ raise_exception('roles must alternate') }}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<eos>{% endfor %}",  # answers are not rendered
    ],
)
def test_a_template_without_an_end_of_turn_leaves_the_end_token(
    tokenizer: PreTrainedTokenizerBase, tiny_model_dir: Path, template: str
) -> None:
    chat = AutoTokenizer.from_pretrained(tiny_model_dir)
    chat.chat_template = template
    assert end_tokens(chat) == {tokenizer.eos_token_id}


def test_a_template_that_was_changed_is_read_again(turns: PreTrainedTokenizerBase) -> None:
    assert turns.convert_tokens_to_ids("<|end|>") in end_tokens(turns)
    turns.chat_template = TEMPLATE
    assert end_tokens(turns) == {turns.eos_token_id}


def test_a_chat_template_is_rendered_with_the_arguments_of_the_config(turns: PreTrainedTokenizerBase) -> None:
    thinking, silent = encode_prompt(turns, "look"), encode_prompt(turns, "look", {"enable_thinking": False})
    assert silent == [*thinking, *turns.convert_tokens_to_ids(["<think>", "</think>"])]
    assert unread_template_kwargs(turns, {"enable_thinking": False}) == []
    assert unread_template_kwargs(turns, {"enable_thinkng": False, "think": 1}) == ["enable_thinkng"]
    turns.chat_template = None
    assert unread_template_kwargs(turns, {"enable_thinking": False}) == ["enable_thinking"]
