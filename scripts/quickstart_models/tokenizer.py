"""The word-level tokenizer of the quickstart's two models: ``cabinet 2`` and ``go to`` are one token each; lossless on
the household's text."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from retro.envs.household import LAMP, OBJECTS, PLACES, TOOLS

_WORDS = (
    "places task put in and look at under clean heat cool it open close take from with use inventory you see "
    "nothing is closed are there happens the room hold broken note try remember to i went be more careful "
    "again do not waste steps think before act search all failed score reflection go "
)
_SYMBOLS = [">", ":", ".", ",", "\n", "go to", "0.00", "0.25", "0.33", "0.50", "0.67", "0.75", "1.00"]


def build_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    names = [f"{kind} {i + 1}" for kind, count in PLACES.items() for i in range(count)]
    names += [f"{tool} {i}" for tool in TOOLS.values() for i in (1, 2)]
    names += [f"{thing} {i}" for thing in OBJECTS for i in (1, 2)] + [LAMP]
    vocabulary = {token: index for index, token in enumerate([*special, *_SYMBOLS, *_WORDS.split(), *names])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"go to|[a-z]+ \d+(?!\.\d)|\d\.\d\d|[a-z]+|\n|\S"), behavior="removed", invert=True
    )
    space_before_words = Regex(r"^(?=[a-z0-9])")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(space_before_words, " "),
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
