"""One pydantic model a stage: YAML in, unknown keys refused, dotted overrides on top.

Importable without torch. ``load_config(path, overrides)`` is the one way in; ``RunConfig.dump()`` the one way out, and
what it writes runs again as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Rating = Literal["delta_return", "over_control", "group"]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]

STAGES = ("collect", "sft", "reward", "ppo", "export", "evaluate")
"""The stages of a run, in the order in which they read one another's outputs."""


class ConfigError(ValueError):
    """A config that cannot be run: the message names the file, the key and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class TaskCounts(Section):
    """How many tasks of each split are played: the first ones in the environment's order."""

    train: NonNegativeInt = 600
    validation: NonNegativeInt = 100
    test: NonNegativeInt = 200
    offset: NonNegativeInt = 0
    """How many tasks of each split are skipped first."""


class EnvironmentSection(Section):
    name: str = "household"
    """One of ``retro env list``, or ``module:ClassName`` of a task set of your own."""
    options: dict[str, Any] = {}
    """What its task set is made with."""
    prompts: str | None = None
    """A folder with ``actor.jinja`` and ``reflection.jinja``, or the name of an environment whose prompts are shipped;
    by default the environment's own."""
    tasks: TaskCounts = TaskCounts()


class BudgetSection(Section):
    """What an actor behind an API may cost in a run, all stages together: at the limit it stops cleanly, and goes on
    when the limit is raised."""

    tokens: PositiveInt | None = None
    """Prompt and completion tokens together."""
    money: PositiveFloat | None = None
    """In the currency of the two prices."""
    prompt_price: NonNegativeFloat = 0.0
    """Of a million prompt tokens."""
    completion_price: NonNegativeFloat = 0.0
    """Of a million completion tokens."""

    @model_validator(mode="after")
    def _priced(self) -> BudgetSection:
        if self.money is not None and not self.prompt_price + self.completion_price:
            raise ValueError("money: a limit in money needs prompt_price and completion_price (of a million tokens)")
        return self


class ActorSection(Section):
    """The frozen actor. ``local`` is a transformers checkpoint, ``openai`` any OpenAI-compatible endpoint."""

    kind: Literal["local", "openai"] = "local"
    model: str = "data/quickstart/actor"
    temperature: NonNegativeFloat = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 128
    concurrency: PositiveInt = 256
    """Episodes under way at once, and with them requests."""
    context_tokens: PositiveInt | None = None
    """The longest prompt and answer together: older observations are left out of a longer prompt, and the text says so.
    By default a local model's own limit; an ``openai`` one has no limit unless it is given here, with ``tokenizer``."""

    revision: str | None = None
    """This and the next five: ``local`` only."""
    adapter: str | None = None
    """A LoRA adapter in PEFT's format on top of the model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "nf4"] = "none"
    trust_remote_code: bool = False
    chat_template_kwargs: dict[str, Any] = {}
    """What the tokenizer's chat template is rendered with beside the messages, such as ``{enable_thinking: false}``. An
    ``openai`` actor's server is told by ``extra_body``."""

    base_url: str | None = None
    """This and the rest: ``openai`` only. The key is read from the environment variable OPENAI_API_KEY, never from
    here."""
    endpoint: Literal["chat", "completions"] = "chat"
    """``chat`` puts the server's chat template around the prompt; ``completions`` sends it as it is (base models)."""
    tokenizer: str | None = None
    """A tokenizer (folder or hub name) that counts as the served model does; needed for ``context_tokens``."""
    timeout_seconds: PositiveFloat = 120.0
    """Of one request."""
    max_retries: NonNegativeInt = 6
    """Of one request, after timeouts, cut connections, rate limits and server errors, with growing jittered pauses."""
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    budget: BudgetSection = BudgetSection()
    cache: str | None = None
    """A file that keeps the answers of temperature 0: an equal request is not sent again."""
    limit_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit of an answer's tokens; OpenAI's reasoning models take the second name alone."""
    extra_body: dict[str, Any] = {}
    """Sent with every request as it is, for what only some servers take; ``null`` leaves out what would be sent. No
    secrets: it is written to ``config.yaml``."""

    @model_validator(mode="after")
    def _counted(self) -> ActorSection:
        if self.kind == "openai" and self.context_tokens is not None and self.tokenizer is None:
            raise ValueError("context_tokens: to count an openai actor's tokens, give its tokenizer too")
        if self.kind == "openai" and self.chat_template_kwargs:
            raise ValueError(
                "chat_template_kwargs: an openai actor's server renders the chat template; set "
                f"extra_body={{chat_template_kwargs: {self.chat_template_kwargs}}}, which vLLM and SGLang read"
            )
        return self


class MemorySection(Section):
    kind: Literal["window"] = "window"
    size: PositiveInt = 3
    """How many of the latest reflections the actor sees (Reflexion: 3)."""


class LoraSection(Section):
    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """While ``sft`` and ``reward`` train; ``ppo`` and its rivals train without."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"


class ModelSection(Section):
    """The retrospective model: one base, on which all adapters live, and how it writes."""

    base: str = "data/quickstart/retrospective"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """``float16`` writes and scores, but does not train: small gradients would become zero."""
    quantization: Literal["none", "nf4"] = "none"
    trust_remote_code: bool = False
    rope_scaling: dict[str, Any] | None = None
    """Overrides the base's rotary scaling (longchat-7b-16k: ``{rope_type: linear, factor: 8.0}``)."""
    chat_template_kwargs: dict[str, Any] = {}
    """What the base's chat template is rendered with beside the messages, such as ``{enable_thinking: false}``."""
    gradient_checkpointing: bool = False
    max_prompt_tokens: PositiveInt | None = None
    """Longer prompts are shortened by rule: observations first, the oldest first, and the text says so. By default what
    the base holds beside an answer of ``max_new_tokens``, at most 2,048."""
    max_new_tokens: PositiveInt = 128
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    lora: LoraSection = LoraSection()


class BufferSection(Section):
    url: str | None = None
    """A SQLAlchemy database URL; by default ``buffer.sqlite`` in the run folder."""
    environments: list[str] = []
    """What training reads of a buffer that holds several environments; empty: all."""


class CollectSection(Section):
    attempts: Annotated[int, Field(ge=2)] = 4
    """Attempts at a task, the first one included."""
    group: PositiveInt = 4
    """Reflections sampled for a failed episode, each with its own retry."""
    controls: NonNegativeInt = 1
    """Retries without a reflection beside each group; not played for an actor at temperature 0."""
    source: Literal["base", "sft"] = "base"
    splits: list[Literal["train", "validation", "test"]] = ["train", "validation", "test"]


class AdamSection(Section):
    """What AdamW remembers of earlier gradients (Kingma and Ba 2015, algorithm 1). The defaults are PyTorch's."""

    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.999
    """Decay of the mean of squared gradients; .95 to .98 follow a change of their size faster."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the squared gradients' mean, which it keeps from 0."""

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2


class OptimiserSection(Section):
    learning_rate: PositiveFloat = 1e-4
    batch_size: PositiveInt = 32
    """Examples in one optimiser step, over all processes and accumulation steps."""
    microbatch_size: PositiveInt = 32
    """Examples in one forward pass of one process."""
    warmup_fraction: Fraction = 0.05
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    adam: AdamSection = AdamSection()


class SftSection(OptimiserSection):
    rating: Rating = "delta_return"
    threshold: float = 0.0
    """Reflections rated above it are imitated."""
    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    checkpoint_every: PositiveInt = 50


class RewardSection(OptimiserSection):
    batch_size: PositiveInt = 32
    """Groups (failed episodes, with all reflections on each) in one optimiser step, over all processes."""
    microbatch_size: PositiveInt = 32
    """Groups in one forward pass of one process."""
    loss: Literal["bradley_terry", "bce"] = "bradley_terry"
    """Pairs from one group, or the paper's accepted / rejected classifier."""
    rating: Rating = "delta_return"
    threshold: float = 0.0
    """``bce``: accepted above it. ``bradley_terry``: the least difference of ratings that makes a pair."""
    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    eval_every: PositiveInt = 50
    """Steps between evaluations on the validation tasks; the best checkpoint is kept."""
    balance: bool = True
    """``bce``: down-sample the more frequent label to 1:1 (the paper's code)."""


class KlSection(Section):
    coefficient: NonNegativeFloat = 0.05
    """β: what one nat of log π/π_ref costs, in units of the score."""
    adaptive: bool = False
    target: PositiveFloat = 0.1
    """Nats a response; ``adaptive`` only (Ziegler et al. 2019)."""
    horizon: PositiveInt = 10_000
    """Responses; ``adaptive`` only."""
    loss: Literal["none", "k1", "k3"] = "none"
    """A second KL term inside the loss. ``k1`` has no expected gradient there and is refused."""
    loss_coefficient: NonNegativeFloat = 0.0


class PpoSection(Section):
    algorithm: Literal["ppo", "dpo", "grpo"] = "ppo"
    """``dpo`` and ``grpo`` are rivals on the same data, by TRL's trainers; docs/training.md says what they read of
    this section."""
    reward: Literal["model", "environment", "mix"] = "environment"
    """The learnt reward model, the actor's own retry (true ΔG), or both."""
    mix: Fraction = 0.5
    """Weight of the environment in ``mix``."""
    score: Literal["sigmoid", "standardise"] = "standardise"
    """How a Bradley-Terry score, which has no scale, becomes a reward."""
    advantage: Literal["gae", "rloo", "group"] = "gae"
    steps: PositiveInt = 30
    contexts: PositiveInt = 24
    """Failed episodes in one step, over all processes."""
    group: PositiveInt = 4
    """Responses a context."""
    epochs: PositiveInt = 4
    minibatches: PositiveInt = 1
    """Optimiser steps an epoch."""
    token_budget: PositiveInt = 16384
    """Tokens in one forward pass: packed sequences are accumulated up to it."""
    learning_rate: PositiveFloat = 1e-4
    value_learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    adam: AdamSection = AdamSection()
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_coefficient: NonNegativeFloat = 0.5
    entropy_coefficient: NonNegativeFloat = 0.0
    whiten_advantages: bool | None = None
    """Scales a step's advantages to mean 0 and variance 1. By default this is done for ``gae``, and not for ``rloo``
    and ``group``: where most groups tie, whitening would scale up the few that differ, and the noise of the KL penalty
    with them."""
    target_kl: PositiveFloat | None = None
    """Stops a step's epochs early once the policy has moved this far from the sampler (nats a token)."""
    max_sampler_gap: PositiveFloat | None = 0.05
    """Nats a token: the run stops before an update on tokens whose log-probabilities by the sampler are on average
    further than this from the recomputed ones (docs/training.md). ``null``: never."""
    missing_end_penalty: NonNegativeFloat = 1.0
    """Taken from the score of a response that was cut at ``max_new_tokens`` without its end token."""
    kl: KlSection = KlSection()
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 3
    validate_every: PositiveInt = 10
    """Steps between measurements of the true return on validation tasks; the best checkpoint is kept."""
    validation_contexts: NonNegativeInt = 64

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened: as the config says, or as suits the kind of advantage."""
        return self.advantage == "gae" if self.whiten_advantages is None else self.whiten_advantages

    @model_validator(mode="after")
    def _checks(self) -> PpoSection:
        if self.kl.loss == "k1":
            raise ValueError(
                "kl.loss: k1 has no expected gradient as a loss term; use k3, or kl.coefficient for k1 in the reward"
            )
        if self.advantage != "gae" and self.group < 2:
            raise ValueError(
                f"group: advantage {self.advantage!r} compares the responses of a group: it needs 2 or more"
            )
        if self.algorithm != "ppo":
            self._check_rival()
        return self

    def _check_rival(self) -> None:
        """What would not only be left unread, but mean something else than it says."""
        if self.kl.adaptive or self.kl.loss != "none" or self.target_kl is not None:
            raise ValueError(
                f"algorithm: {self.algorithm!r} has one fixed KL term, kl.coefficient: set kl.adaptive=false, "
                "kl.loss=none and target_kl=null"
            )
        if self.algorithm == "dpo" and not self.kl.coefficient:
            raise ValueError("algorithm: 'dpo' needs kl.coefficient > 0: without it nothing holds the policy")
        if self.algorithm == "dpo" and self.reward != "environment":
            raise ValueError(
                f"algorithm: 'dpo' learns from the ratings in the buffer and asks no reward {self.reward!r}: set "
                "reward=environment"
            )
        if self.algorithm == "grpo" and (self.group < 2 or not self.kl.coefficient):
            raise ValueError("algorithm: 'grpo' needs group ≥ 2 and kl.coefficient > 0")


class ExportSection(Section):
    checkpoint: Literal["best", "last"] = "best"


ARMS = ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "sft", "ppo", "oracle")


class EvaluateSection(Section):
    attempts: PositiveInt = 4
    arms: list[str] = []
    """Names of arms; empty: every arm that the run has the models for. ``ppo-rm`` and ``ppo-env`` name the PPO stage by
    its reward (of its rivals: ``grpo-rm``, ``grpo-env``, ``dpo``); ``-bonN`` keeps the best of N reflections by the
    reward model's score."""
    best_of: list[PositiveInt] = [4, 8]
    sampled_temperature: PositiveFloat = 1.0
    """The actor's temperature in ``retry-sampled``."""
    bootstrap: PositiveInt = 10_000
    permutations: PositiveInt = 100_000
    checkpoints: dict[str, str] = {}
    """Further arms: name → run folder, stage folder, ``checkpoint-*`` or plain PEFT adapter."""


ACTOR_KEYS = tuple(
    f"actor.{key}"
    for key in ActorSection.model_fields
    if key
    not in {
        "concurrency",
        "timeout_seconds",
        "max_retries",
        "requests_per_minute",
        "tokens_per_minute",
        "budget",
        "cache",
    }
)
"""What decides the actor's answers; the other keys say how, how fast and at what cost it is asked."""


PPO_KEYS = tuple(f"ppo.{key}" for key in PpoSection.model_fields if key != "max_sampler_gap")
"""What decides what the stage learns; ``max_sampler_gap`` can only stop it, and may be raised to go on."""


class RunConfig(Section):
    """Everything a run needs, resolved."""

    name: str = "run"
    runs: str = "runs"
    """The folder of run folders."""
    seed: NonNegativeInt = 0
    device: str = "auto"
    """``auto``: CUDA where there is one."""
    trackers: list[Literal["wandb", "tensorboard"]] = []
    environment: EnvironmentSection = EnvironmentSection()
    actor: ActorSection = ActorSection()
    memory: MemorySection = MemorySection()
    model: ModelSection = ModelSection()
    buffer: BufferSection = BufferSection()
    collect: CollectSection = CollectSection()
    sft: SftSection = SftSection()
    reward: RewardSection = RewardSection()
    ppo: PpoSection = PpoSection()
    export: ExportSection = ExportSection()
    evaluate: EvaluateSection = EvaluateSection()

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name

    @property
    def actor_ledger(self) -> Path:
        """What the actor has cost so far: JSON lines that add up."""
        return self.run_dir / "actor_usage.jsonl"

    @property
    def buffer_url(self) -> str:
        return self.buffer.url or f"sqlite:///{self.run_dir / 'buffer.sqlite'}"

    def dump(self) -> str:
        """YAML that :func:`load_config` reads back to an equal config."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config, apply ``key.sub=value`` overrides (values are YAML), validate.

    Raises:
        ConfigError: naming the file, the key, what is wrong with it and the nearest right key.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {path}: no such file")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: the top level must be a mapping of sections, not {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, str(path))


def parse_config(tree: dict[str, Any], origin: str) -> RunConfig:
    """Validate a tree of plain values; ``origin`` is what errors call it."""
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"config {origin}:\n" + "\n".join(_explain(error))) from None
    _refuse_passwords(config)
    return config


def _refuse_passwords(config: RunConfig) -> None:
    """Before anything is written: the config is, whole, to the run folder, the trackers and the terminal."""
    remedies = {
        "actor.base_url": (config.actor.base_url, "set the environment variable OPENAI_API_KEY"),
        "buffer.url": (config.buffer.url, "give it as the database's driver reads it (PGPASSWORD or ~/.pgpass)"),
    }
    for key, (url, remedy) in remedies.items():
        before, at, after = (url or "").rpartition("@")
        if at and "//" in before and (":" in before.partition("//")[2] or key == "actor.base_url"):
            shown = f"{before.partition('//')[0]}//***@{after}"
            raise ConfigError(
                f"{key} {shown!r}: a password in a URL would be written to config.yaml and logs: take it out, and "
                f"{remedy}"
            )


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: write it as key.sub=value, for example ppo.steps=50")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        tree[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        location = [part for part in problem["loc"]]
        key = ".".join(map(str, location))
        if problem["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            yield f"  {key}: unknown key; {hint}"
        else:
            whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # the check of a section
            got = "" if whole else f" (got {problem['input']!r})"
            yield f"  {key or 'config'}: {problem['msg'].removeprefix('Value error, ')}{got}"


def _known_keys(location: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        annotation = field.annotation
        candidates = [annotation, *get_args(annotation)]
        models = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
