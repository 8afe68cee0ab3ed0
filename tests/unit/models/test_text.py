"""Prompts and answers as tokens, with and without a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from retro.models.text import decode_response, encode_prompt, encode_response

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
    assert decode_response(tokenizer, ids) == ("nothing in cabinet 2. try desk 1.", "stop")
    assert decode_response(tokenizer, ids[:-1]) == ("nothing in cabinet 2. try desk 1.", "length")
    assert decode_response(tokenizer, []) == ("", "length")


def test_an_answer_needs_an_end_token(tiny_model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_response(tokenizer, "look")
    assert decode_response(tokenizer, tokenizer.encode("look")) == ("look", "length")
