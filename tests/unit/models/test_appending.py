"""Prompts that grow have the tokens that they have at once, whatever their lines hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from retro.models.appending import PromptEncoder, cuts_at_newlines
from retro.models.text import encode_prompt
from scripts.small_models.household.tokenizer import build_tokenizer

HOUSEHOLD = r"go to|[a-z]+ \d+(?!\.\d)|\d\.\d\d|[a-z]+|\n|\S"
PIECES = ["go", " ", "to", "cabinet", "2", "0.25", ".", "\n", "\n\n", ">", "mug 1", "<eos>", "x", "\t", "é", "\r\n", ""]


def made(cutter: pre_tokenizers.PreTokenizer | None, bos: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer."""
    words = ["<unk>", "<eos>", "<bos>", "go", "to", "go to", "cabinet", "cabinet 2", "2", "0.25", ".", "\n", ">", "x"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    if cutter is not None:
        tokenizer.pre_tokenizer = cutter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", bos_token="<bos>" if bos else None
    )


def split(pattern: str, behavior: str = "removed", invert: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


EXACT: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "household": build_tokenizer,
    "white space": lambda: made(pre_tokenizers.WhitespaceSplit()),
    "words": lambda: made(pre_tokenizers.Whitespace(), bos=True),
    "matches": lambda: made(split(HOUSEHOLD), bos=True),
    "matches without newlines": lambda: made(split(r"[a-z.]+(?= \d)|\w{2,}|\S")),
    "isolated": lambda: made(split(r" |\n", "isolated", invert=False)),
    "between": lambda: made(split(r"\n|[a-z]+ \d", "removed", invert=False)),
}


@pytest.mark.parametrize("name", EXACT)
@given(turns=st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=1, max_size=6))
def test_a_growing_prompt_has_the_tokens_of_the_whole_text(name: str, turns: list[str]) -> None:
    tokenizer = EXACT[name]()
    assert cuts_at_newlines(tokenizer)
    encoder = PromptEncoder(tokenizer, None, remembered=4)
    text = ""
    for turn in turns:
        text += turn
        assert encoder(text) == encode_prompt(tokenizer, text)


@pytest.mark.parametrize(
    "pattern",
    [
        r"[^ ]+",
        r"\s+|\S+",
        r"go.to",
        r"a(\n|b)",
        r"(?m:.)",
        r"a\W",
        r"[\s]",
        r"\p{L}+",
        r"(?<=a)b",
        r"a$",
        r"[\n]x",
        r"\X",
    ],
)
def test_words_that_may_extend_over_a_newline_are_not_cut_there(pattern: str) -> None:
    assert not cuts_at_newlines(made(split(pattern)))


def test_only_tokenizers_that_look_words_up_are_cut() -> None:
    assert not cuts_at_newlines(made(None))
    assert not cuts_at_newlines(made(split(r"go", invert=False)))  # a word reaches from one match to the next
    assert not cuts_at_newlines(made(split(r"go", "isolated")))
    lowered = build_tokenizer()
    lowered.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert not cuts_at_newlines(lowered)
    spaced = build_tokenizer()
    spaced.add_tokens("two\nlines")
    assert not cuts_at_newlines(spaced)
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert not cuts_at_newlines(PreTrainedTokenizerFast(tokenizer_object=bytes_))


def test_only_new_lines_are_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = build_tokenizer()
    encoder = PromptEncoder(tokenizer, None, remembered=2)
    texts: list[str] = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **options: texts.append(text) or encode(text, **options))
    encoder("desk 1\nshelf 1\n>")
    texts.clear()
    for _ in range(2):  # its length is looked at first, then it is answered
        assert encoder("desk 1\nshelf 1\n> look\nnothing happens\n>")[:3] == encoder("desk 1\nshelf")[:3]
    assert "desk 1\nshelf 1\n" not in "".join(texts)


def test_a_chat_template_is_rendered_with_the_whole_text() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }} look"
    encoder = PromptEncoder(tokenizer, {}, remembered=2)
    for text in ("desk 1\n", "desk 1\nshelf 1"):
        assert encoder(text) == encode_prompt(tokenizer, text, {})
    assert encoder([{"role": "user", "content": "desk 1"}]) == encode_prompt(tokenizer, "desk 1", {})
