"""A word-level tokenizer from a vocabulary and a pattern that cuts texts into its tokens."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def word_level_tokenizer(tokens: Iterable[str], pattern: str) -> PreTrainedTokenizerFast:
    """
    Args:
        tokens: The vocabulary, without the special tokens.
        pattern: What a token can be, as a regular expression; what lies between tokens (spaces) is dropped. In decoded
            text a space stands before every token that begins with a letter or a digit.
    """
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?=[A-Za-z0-9])"), " "),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
