"""Models and work of the PPO benchmarks: random weights, random tokens, an end token that cannot be drawn.

Speed and memory depend on shapes, not on what the weights have learnt. The tokenizer's end token lies beyond the
model's vocabulary, so that every response has its full length, on every side and without a change to any sampler.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.pipeline_work import HEADS, write_roles
from retro.buffer.views import Context
from retro.config import RunConfig, load_config
from retro.models.adapters import SharedBase, with_adapter
from retro.models.heads import load_head
from retro.models.limits import prompt_tokens
from retro.models.loading import load_base
from retro.training.policy.models import PolicyModels
from retro.types import Episode, Split, StopReason, Task, Trajectory, derive_seed

SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
SMALL_VOCABULARY = 4096
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_VOCABULARY = 256
LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_7B_VOCABULARY = 32_000
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


@dataclass(frozen=True, slots=True)
class Sizes:
    """A step's work: prompts of evenly spaced lengths, a group of responses to each."""

    contexts: int
    group: int
    shortest: int
    longest: int
    """Tokens of the shortest and the longest prompt."""
    response: int
    epochs: int = 4

    @property
    def samples(self) -> int:
        return self.contexts * self.group

    @property
    def lengths(self) -> list[int]:
        steps = max(self.contexts - 1, 1)
        return [self.shortest + (self.longest - self.shortest) * place // steps for place in range(self.contexts)]


@dataclass(frozen=True, slots=True)
class TokenContext(Context):
    """A context whose prompt is given in tokens."""

    tokens: tuple[int, ...] = ()


class TokenModels(PolicyModels):
    """The product's models, asked with prompts in tokens: nothing is encoded."""

    def prompt(self, context: Context) -> list[int]:
        assert isinstance(context, TokenContext)
        return list(context.tokens)


def token_contexts(prompts: Sequence[Sequence[int]]) -> list[TokenContext]:
    """Contexts that no environment knows, one a prompt."""
    contexts = []
    for place, prompt in enumerate(prompts):
        task = Task("tokens", str(place), Split.TRAIN)
        episode = Episode(f"tokens-{place}", task, 0, Trajectory(""), 0.0, False, StopReason.HORIZON)
        contexts.append(TokenContext(episode, (), tuple(prompt)))
    return contexts


def random_tokens(vocabulary: int, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """A sequence of each length; token 0, which pads, is in none."""
    generator = random.Random(seed)
    return [[generator.randrange(1, vocabulary) for _ in range(length)] for length in lengths]


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Word ``wN`` is token N: any tokens are a text that is encoded as the same tokens.

    ``<end>`` and ``<pad>`` follow the vocabulary; what pads is token 0 unless a side chooses ``<pad>``.
    """
    words = {f"w{number}": number for number in range(vocabulary)} | {"<end>": vocabulary, "<pad>": vocabulary + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="<end>", clean_up_tokenization_spaces=False
    )


def llama_config(sizes: dict[str, int], vocabulary: int, context: int) -> LlamaConfig:
    return LlamaConfig(
        **sizes,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def run_config(sizes: Sizes, *overrides: str) -> RunConfig:
    """A run's configuration for ``sizes``: the project's defaults but for what the work says."""
    fixed = (
        "ppo.reward={kind: model, score: sigmoid}",
        "ppo.advantage=gae",
        "ppo.minibatches=1",
        "ppo.learning_rate=1e-4",
        "model.lora={r: 16, alpha: 32}",
        f"ppo.contexts={sizes.contexts}",
        f"ppo.group={sizes.group}",
        f"ppo.epochs={sizes.epochs}",
        f"model.max_prompt_tokens={sizes.longest}",
        f"model.max_new_tokens={sizes.response}",
    )
    return load_config(CONFIG, [*fixed, *overrides])


def write_models(config: RunConfig, shape: dict[str, int], vocabulary: int, folder: Path) -> int:
    """A base with its roles and heads in ``folder``, and the whole models that a peer loads instead of roles.

    All sides begin alike: the reference's adapter changes nothing (a peer's reference is its policy with the adapter
    off), and a peer's value model is the policy with the same head.

    Args:
        config: its ``model.base`` is ``folder/base``.

    Returns:
        Parameters of the base.
    """
    length = prompt_tokens(config.model, context=None) + config.model.max_new_tokens
    torch.manual_seed(derive_seed(config.seed, "benchmark", "base") % 2**63)
    model = LlamaForCausalLM(llama_config(shape, vocabulary, length))
    model.save_pretrained(folder / "base")
    word_tokenizer(vocabulary).save_pretrained(folder / "base")
    write_roles(config, folder)
    base = SharedBase.load(config.model, "cpu")
    base.add_role("reference", config.model.lora, derive_seed(config.seed, "benchmark", "reference"))
    base.save_role("reference", folder / "reference")
    for adapter, head, name in zip(("policy", "reward"), HEADS, ("value", "reward_model"), strict=True):
        _write_scorer(config, folder / adapter, folder / head, folder / name)
    return model.num_parameters()


def _write_scorer(config: RunConfig, adapter: Path, head: Path, folder: Path) -> None:
    """An adapter merged into the base, with a head, as a sequence classifier of one number."""
    merged = with_adapter(load_base(config.model, "cpu"), adapter)
    described = LlamaConfig(**{**merged.config.to_dict(), "num_labels": 1})
    scorer = LlamaForSequenceClassification(described)
    decoder = merged.get_decoder()
    scorer.model.load_state_dict(decoder.state_dict())
    assert isinstance(scorer.score, nn.Linear)
    with torch.no_grad():
        scorer.score.weight.copy_(load_head(head).weight[None])  # the head's bias is 0, and the classifier has none
    scorer.save_pretrained(folder)
