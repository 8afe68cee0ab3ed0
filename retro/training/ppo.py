"""The PPO stage: sample reflections on failed episodes, score them, update the policy adapter, guard by true returns.

Sharing of work: a step's contexts have places 0 … contexts − 1 in one seeded order; process r of n takes the places
r, r + n, …, samples, scores and backpropagates its own, and all sums go over all processes. What is drawn depends on
(seed, step, place) alone, so a resumed run repeats an unbroken one, and two processes repeat one.

PPO samples at temperature 1 without top-p, whatever ``model.temperature`` says: the sampler must be the distribution
whose log-probabilities are learnt. The guard samples as the config says, since that is how the model will be used.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from retro.artifacts import digest_actor_parts, digest_model, digest_path
from retro.buffer.store import ReplayBuffer
from retro.buffer.views import Context, contexts
from retro.config import CheckpointSection, ConfigError, PolicySection, RunConfig, build
from retro.layout import BEST, CHECKPOINT, RunFolder
from retro.memory.bank import bank_inputs
from retro.models.loading import load_tokenizer, resolve_device
from retro.models.sharding import launched_pieces
from retro.retrospective.reward_files import RewardFiles, facts_file
from retro.rl.experience import Reduce, alone
from retro.rl.kl import next_coefficient
from retro.rl.options import PpoOptions
from retro.rl.ppo import Trainable, build_experience, describe, update
from retro.stage import Stage, Work
from retro.training.checkpoints import checkpoints, load_optimiser, new_folder, prune, save_optimiser
from retro.training.examples import Encoder, training_inputs, without_too_long
from retro.training.ppo_checkpoint import PpoState, load_state, save_state
from retro.training.ppo_guard import Guard, best_metrics, choose_guarded, log_best, with_best
from retro.training.ppo_models import PpoModels
from retro.training.ppo_records import cut_samples, mean_metrics, record, show_samples, write_rollouts
from retro.training.ppo_rewards import Retries, ScoreTransform, score_kind
from retro.training.ppo_rollouts import Rollouts
from retro.training.ppo_sampler import require_small_gap, sampler_gaps
from retro.types import Split, derive_seed

logger = logging.getLogger(__name__)


def policy_keys(config: RunConfig) -> list[str]:
    """What decides the policy. DPO also reads by which ratings the reward stage makes pairs."""
    pairs = ("reward.loss", "reward.rating", "reward.threshold") if config.ppo.algorithm == "dpo" else ()
    played = ("environment.name", "environment.options", "actor", "memory") if _plays(config.ppo) else ()
    return ["model", "buffer", "ppo", *pairs, *played]


def _plays(section: PolicySection) -> bool:
    """Whether the actor plays retries: for the reward, or for the guard."""
    return "retries" in section.needs or section.validation_contexts > 0


def policy_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what is read: buffer, base, prompts, the sft adapter, and the reward model and the actor where asked.

    Raises:
        ConfigError: if the output of a stage before is missing, or the launch is one that this stage does not run
            under.
    """
    if launched_pieces("ppo", config.model) and config.ppo.algorithm != "ppo":
        raise ConfigError(
            f"ppo.algorithm={config.ppo.algorithm} trains on whole bases: launch it with "
            "configs/accelerate/multi-gpu.yaml"
        )
    run = RunFolder(config.run_dir)
    section, sft = config.ppo, run.sft_adapter
    if not sft.is_dir():
        raise ConfigError(f"ppo starts from the supervised adapter, and {sft} is not there: run the stage sft first")
    inputs = training_inputs(config) | {"sft": digest_path(sft)}
    if "reward_model" in section.needs:
        reward = RewardFiles.of_stage(run.reward)
        if not reward.adapter.is_dir():
            raise ConfigError(
                f"ppo.reward asks the reward model, and {reward.adapter} is not there: run the stage reward, or set "
                "ppo.reward=environment"
            )
        inputs["reward"] = " ".join(map(digest_path, (reward.adapter, reward.head, facts_file(run.reward))))
    if _plays(section):
        inputs |= digest_actor_parts(config.actor) | bank_inputs(config)
        if isinstance(config.actor, CheckpointSection):
            inputs["actor"] = digest_model(config.actor.model)
    return inputs


def train_policy(config: RunConfig, work: Work) -> None:
    """Make ``best/``, ``checkpoint-*/``, ``rollouts/``, ``samples.jsonl``.

    Raises:
        ConfigError: if there is nothing to train on.
    """
    with ReplayBuffer(config.buffer_url, create=False) as buffer:
        train = contexts(buffer, [Split.TRAIN], config.buffer.environments)
        held_out = contexts(buffer, [Split.VALIDATION], config.buffer.environments)
    encoder = Encoder(load_tokenizer(config.model), config)
    train = without_too_long(train, encoder, "failed episodes of train tasks")
    held_out = without_too_long(held_out, encoder, "failed episodes of validation tasks")
    if not train:
        raise ConfigError(
            f"ppo: {buffer} has no failed episode of a train task to reflect on within model.max_prompt_tokens"
        )
    build(config.ppo).learn(config, work, train, held_out)
    work.output("best", work.folder / BEST)
    work.output("last", work.folder / f"{CHECKPOINT}{config.ppo.steps}")


def learning_rate_factor(section: PolicySection, step: int) -> float:
    """What the learning rates are multiplied by at step 1 … ``steps``: a function of the step, with no state."""
    warmup = min(1.0, step / section.warmup_steps) if section.warmup_steps else 1.0
    decay = (section.steps - step + 1) / section.steps if section.schedule == "linear" else 1.0
    return warmup * decay


def contexts_of_step(count: int, section: PolicySection, seed: int, step: int) -> list[int]:
    """Which of ``count`` contexts stand at the places of step 1, 2, …: epochs over all of them, each newly shuffled."""
    chosen: list[int] = []
    order: list[int] = []
    shuffled = -1
    for position in range((step - 1) * section.contexts, step * section.contexts):
        if position // count != shuffled:
            shuffled = position // count
            order = list(range(count))
            random.Random(derive_seed(seed, "ppo", "contexts", shuffled)).shuffle(order)
        chosen.append(order[position % count])
    return chosen


class PpoTrainer:
    """The loop of the stage, one :meth:`step` after the other."""

    def __init__(
        self,
        options: PpoOptions,
        config: RunConfig,
        work: Work,
        train: Sequence[Context],
        held_out: Sequence[Context],
    ) -> None:
        self.config, self.section, self.work = config, options, work
        self.accelerator = Accelerator(cpu=resolve_device(config.device).type == "cpu")
        work.open_trackers(self.accelerator)
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.train = train
        guarded = choose_guarded(held_out, self.section.validation_contexts, config.seed)
        if self.section.validation_contexts and not guarded:
            logger.warning(
                "ppo: the buffer has no failed validation episodes: no guard, the last checkpoint is the best"
            )

        device = self.accelerator.device
        found = checkpoints(work.folder) if work.resumed else []
        folder = found[-1][1] if found else None
        run = RunFolder(config.run_dir)
        reward = run.reward if "reward_model" in options.needs else None
        files = RewardFiles.of_stage(reward) if reward else None
        sharded = launched_pieces("ppo", config.model) is not None
        self.models = PpoModels.load(
            config,
            device,
            run.sft_adapter,
            files,
            folder,
            sharded=sharded,
            entropy_gradient=options.entropy_coefficient > 0,
        )
        self.retries: Retries | None = None
        if "retries" in options.needs or guarded:
            environments = {context.episode.task.environment for context in [*train, *guarded]}
            self.retries = Retries(config, environments, device)
        self.guard = Guard(config, guarded, self.models, self.retries) if guarded and self.retries else None
        self.trainables = [
            Trainable("policy", list(self.models.policy_parameters.values())),
            Trainable("value", list(self.models.value_parameters.values())),
        ]
        self.rates = {"policy": self.section.learning_rate, "value": self.section.value_learning_rate}
        self.optimiser = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": self.rates[group.name]} for group in self.trainables],
            betas=self.section.adam.betas,
            eps=self.section.adam.epsilon,
            weight_decay=self.section.weight_decay,
        )
        if folder is not None:
            self.state = load_state(folder)
            load_optimiser(self.optimiser, self.models.trained_parameters, folder)
            self.transform = ScoreTransform(score_kind(options), self.state.score_mean, self.state.score_std)
            logger.info("ppo: resumes after step %d", self.state.step)
        else:
            self.transform = ScoreTransform.load(score_kind(options), reward) if reward else ScoreTransform("sigmoid")
            self.state = PpoState(0, self.section.kl.coefficient, self.transform.mean, self.transform.std)
        self.rollouts = Rollouts(options, config, self.models, self.retries, self.transform)
        work.cut_metrics(self.state.step if folder else None)
        if work.main:
            cut_samples(work.folder, self.state.step if folder else -1)

    @property
    def reduce(self) -> Reduce:
        return alone if self.processes == 1 else self._sum

    def _sum(self, tensor: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def run(self) -> None:
        if self.state.step == 0:
            self.check()
        while self.state.step < self.section.steps:
            self.step(self.state.step + 1)
        log_best(self.state)

    def close(self) -> None:
        """Give back what the retries' environments hold: the next stage plays with its own."""
        if self.retries is not None:
            self.retries.close()

    def step(self, number: int) -> None:
        """One step: sample, score, learn, log, and at its turn guard and checkpoint."""
        started = perf_counter()
        chosen = contexts_of_step(len(self.train), self.section, self.config.seed, number)
        mine = {place: self.train[chosen[place]] for place in range(self.rank, len(chosen), self.processes)}
        responses = self.rollouts.sample(mine, number)
        sampled = perf_counter()
        scored = self.rollouts.score(mine, responses, number)
        judged = perf_counter()
        batch = self.models.batch([mine[place] for place in scored.places], scored.responses)
        rollout = self.models.rollout(batch, scored)
        gaps = sampler_gaps(rollout, scored.responses)
        bound, device = self.section.max_sampler_gap, self.accelerator.device
        require_small_gap(gaps, scored.responses, bound, number, self.reduce, device)
        experience = build_experience(rollout, self.section, self.state.kl_coefficient, self.reduce)
        facts = describe(experience, self.reduce)
        factor = learning_rate_factor(self.section, number)
        for group, trainable in zip(self.optimiser.param_groups, self.trainables, strict=True):
            group["lr"] = self.rates[trainable.name] * factor
        with self.models.learning(batch) as policy:
            learnt = update(
                experience,
                policy,
                self.trainables,
                self.optimiser,
                self.section,
                derive_seed(self.config.seed, "ppo", number),
                self.reduce,
            )
        done = perf_counter()
        records = [
            record(number, mine[response.place], response, worth, gap)
            for response, worth, gap in zip(scored.responses, scored.worths, gaps, strict=True)
        ]
        records = sorted(gather_object(records), key=lambda row: (row["place"], row["index"]))
        dropped = int(self.reduce(torch.tensor([float(scored.dropped)], device=device)).item())
        self.work.log(
            number,
            **learnt,
            **facts,
            **mean_metrics(records),
            kl_coefficient=self.state.kl_coefficient,
            learning_rate=self.rates["policy"] * factor,
            responses=len(records),
            dropped_groups=dropped,
            seconds_sample=round(sampled - started, 4),
            seconds_score=round(judged - sampled, 4),
            seconds_update=round(done - judged, 4),
        )
        coefficient = next_coefficient(self.state.kl_coefficient, self.section.kl, facts["kl"], len(records))
        self.state = replace(self.state, step=number, kl_coefficient=coefficient)
        if self.work.main:
            write_rollouts(self.work.folder, number, records)
            prompts = {place: self.models.prompt_text(context) for place, context in mine.items() if place == 0}
            show_samples(self.work.folder, self.accelerator, number, records, prompts)
        if number % self.section.validate_every == 0 or number == self.section.steps:
            self.check()
        if number % self.section.checkpoint_every == 0 or number == self.section.steps:
            self.save()

    def check(self) -> None:
        """Ask the guard; the best policy so far is kept (:func:`with_best`)."""
        number = self.state.step
        measured = self.guard.measure(number, self.rank, self.processes) if self.guard else None
        chosen = with_best(self.state, number, number == self.section.steps, measured)
        if chosen is not None:
            self.keep_best(chosen)
        if measured is not None:
            self.work.log(number, **measured.metrics, **best_metrics(self.state))

    def keep_best(self, state: PpoState) -> None:
        self.state = state
        if self.work.main:
            with new_folder(self.work.folder / BEST) as folder:
                self.models.save(folder)
                save_state(self.state, folder)
        self.accelerator.wait_for_everyone()

    def save(self) -> None:
        """``checkpoint-N``: the whole state after this step."""
        if self.work.main:
            with new_folder(self.work.folder / f"{CHECKPOINT}{self.state.step}") as folder:
                self.models.save(folder)
                save_optimiser(self.optimiser, self.models.trained_parameters, folder)
                save_state(self.state, folder)
            prune(self.work.folder, self.section.keep_checkpoints)
        self.accelerator.wait_for_everyone()


STAGE = Stage(
    name="ppo",
    folder="ppo",
    reads=("collect", "memory", "sft", "reward"),
    keys=policy_keys,
    not_deciding=("environment.name", "environment.prompts"),
    inputs=policy_inputs,
    run=train_policy,
    trains=True,
)
