"""A small language model with random weights and a tokenizer for any text: to see that a path works, not its worth.

    python scripts/make_random_model.py runs/random-model
    retro run configs/hotpotqa.yaml actor.kind=local actor.model=runs/random-model model.base=runs/random-model …

Byte-level BPE, so no text is unknown to it; a Llama of about 200,000 parameters with a context of 16,384 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
SPECIAL = ("<pad>", "<s>", "</s>")


def build_tokenizer(vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the shipped prompts and the documentation: text like what it will be given."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("retro/prompts/*/*.jinja"))]
    texts += [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/**/*.md"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, begin, end = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end)


def build_model(tokenizer: PreTrainedTokenizerFast, context: int, seed: int, layers: int = 2) -> LlamaForCausalLM:
    """Layers of width 48, weights drawn from ``seed``."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.2,  # peaked enough that greedy choices are no ties
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def make(
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    context: Annotated[int, typer.Option(help="Tokens of its context.")] = 16_384,
    seed: Annotated[int, typer.Option(help="Of its weights.")] = 0,
) -> None:
    """Write a random model and its tokenizer into FOLDER."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, context, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} random parameters, {len(tokenizer):,} tokens, context {context:,}")


if __name__ == "__main__":
    typer.run(make)
