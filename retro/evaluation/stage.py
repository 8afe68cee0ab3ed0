"""evaluate: every arm on the held-out tasks → ``results.json``, ``episodes.jsonl``, the plot and the report page.

It reads the adapters of the sft, reward and ppo stages and trains nothing. An interrupted evaluation resumes at the
episode where it stopped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from retro.artifacts import digest_model, digest_parts, digest_path, write_json
from retro.config import ActorSection, ArmSection, ConfigError, MemorySection, RunConfig, build
from retro.evaluation import presets
from retro.evaluation.arms import Arm, actor_digests, adapter_of, describe, fingerprint, prompts_digest, revising_digest
from retro.evaluation.locate import reward_model, stage_adapter
from retro.evaluation.models import RetrospectiveArms
from retro.evaluation.play import ArmPlayer
from retro.evaluation.records import FORMAT, EpisodeRecords, Record, RecordFileError, chains
from retro.evaluation.report import Paths, rebuild_report
from retro.evaluation.results import Draws, Results, summarise
from retro.evaluation.roles import Writer
from retro.evaluation.sources import NoDonorError
from retro.evaluation.statistics import Outcome, outcome
from retro.memory.bank import BankFacts, bank_inputs, bank_of
from retro.models.limits import READING_KEYS, SAMPLING_KEYS
from retro.prompts import PromptLibrary
from retro.retrospective.adapter_files import checkpoint_of
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.stage import MANIFEST, Stage, Work, read_manifest
from retro.ties import highest
from retro.types import Split, to_json

logger = logging.getLogger(__name__)

FEW_TASKS = 30
"""With fewer tasks, two arms must differ on about a third of them before a paired test could tell them apart."""
Log = Callable[..., None]
Outcomes = dict[str, dict[str, Outcome]]
"""Arm → task id → outcome."""


def evaluation_inputs(config: RunConfig) -> dict[str, str]:
    """A digest of every model that the arms play with, of what the arms are, and the format of the results."""
    arms = presets.planned_arms(config)
    parts = json.dumps([describe(arm, config) for arm in arms], sort_keys=True)
    inputs = {
        "format": str(FORMAT),
        "arms": hashlib.sha256(parts.encode()).hexdigest(),  # a short name may come to stand for other parts
        "base": digest_model(config.model.base, config.model.revision),
        "prompts": prompts_digest(config),
    }
    if any(arm.rewrites for arm in arms):
        inputs["revising"] = revising_digest(config)
    inputs |= actor_digests(config.actor) | bank_inputs(config)
    adapters = {name: stage_adapter(config, name) for name in ("sft", "ppo")}
    for arm in arms:
        if arm.policy.path is not None:
            adapters[f"policy of {arm.name}"] = adapter_of(arm.policy, config)
        for actor, what in ((arm.actor, arm.name), (arm.retries, f"{arm.name}'s retries")):
            if actor.model_copy(update={"temperature": config.actor.temperature}) != config.actor:
                inputs |= {f"{part} of {what}": digest for part, digest in actor_digests(actor).items()}
        if arm.memory != config.memory:
            inputs |= {f"{part} of {arm.name}'s memory": digest for part, digest in digest_parts(arm.memory).items()}
    inputs |= {name: digest_path(path) for name, path in adapters.items() if path is not None}
    reward = reward_model(config)
    return inputs | ({"reward": reward.digest} if reward else {})


def evaluate_arms(config: RunConfig, work: Work) -> None:
    """Evaluate the run's arms."""
    work.cut_metrics(None)
    paths = Paths(config.run_dir, work.folder)
    earlier = [] if work.replaced is None else recorded_before(Paths(config.run_dir, work.replaced).episodes)
    evaluate_into(config, paths, work.log, lambda: work.seconds, earlier)
    for name in ("results", "episodes", "plot", "page"):
        work.output(name, getattr(paths, name))


def recorded_before(path: Path) -> list[Record]:
    """The records of the evaluation that this one replaces: with another arm, or more attempts, they still hold."""
    if not path.is_file():
        return []
    try:
        with EpisodeRecords(path) as records:
            return records.all()
    except RecordFileError as error:
        logger.warning("evaluate: nothing is taken over: %s", error)
        return []


def evaluate_into(
    config: RunConfig,
    paths: Paths,
    log: Log | None = None,
    seconds: Callable[[], float] | None = None,
    earlier: Sequence[Record] = (),
) -> Results:
    """Play every selected arm, and write the results, records, plot and page into ``paths.evaluation``.

    Args:
        log: Called as ``log(step, arm=…, success_first=…, success_last=…)`` after each arm.
        seconds: The evaluation's own wall time so far.
        earlier: The records of an earlier evaluation: arms that have not changed are not played again.
    """
    arms = presets.selected_arms(config)
    counts = config.environment.tasks
    models = RetrospectiveArms(config, PromptLibrary.from_section(config.environment))

    with PlayerParts(config.device, config.actor_ledger) as parts, EpisodeRecords(paths.episodes) as records:

        def runner(actor: ActorSection, memory: MemorySection) -> Runner:
            spec = PlayerSpec(config.environment, actor, memory, bank_of(memory, config))
            made: Runner = build(config.runner, spec=spec, parts=parts)
            return made

        taskset = parts.taskset(config.environment)
        tasks = taskset.tasks(Split.TEST, counts.test, counts.offset)
        player = ArmPlayer(taskset, tasks, config.seed, records, runner, models, earlier)
        outcomes, notes = asyncio.run(play_all(config, arms, player, log))
    results = summarise(
        {arm.name: describe(arm, config) for arm in arms if arm.name in outcomes},
        {name: {config.seed: by_task} for name, by_task in outcomes.items()},
        tasks,
        config.evaluate.attempts,
        Draws(config.evaluate.bootstrap, config.evaluate.permutations, config.seed),
    )
    for arm in arms:
        bank = bank_of(arm.memory, config)
        if bank is not None and arm.name in outcomes:
            results["arms"][arm.name]["bank"] = to_json(BankFacts.read(bank))
    results["notes"] = [*cautions(results), *notes]
    results["seconds"] = stage_seconds(config) | ({"evaluate": round(seconds(), 3)} if seconds else {})
    write_json(paths.results, results)
    rebuild_report(paths.run, paths.evaluation)
    return results


def cautions(results: Results) -> list[str]:
    """Why these figures do not compare the arms, if they do not; the page says it first."""
    said = []
    if not any(arm["success_by_trial"][-1] for arm in results["arms"].values()):
        said.append("No arm solved a task: this shows that the pipeline runs, and compares nothing.")
    if results["tasks"] < FEW_TASKS:
        said.append(f"{results['tasks']} tasks are too few to tell arms apart: see the intervals.")
    return said


def with_checkpoints(config: RunConfig, paths: Sequence[Path], best_of: Sequence[int] = ()) -> RunConfig:
    """The config that evaluates the checkpoints at ``paths``, each with the Best-of-N of every N in ``best_of``.

    Without ``evaluate.arms`` they are played beside ``retry-sampled`` and ``reflexion`` alone.

    Raises:
        ConfigError: if two paths have one name.
    """
    arms: dict[str, ArmSection] = {}
    for path in paths:
        arm = ArmSection(name=checkpoint_name(path), policy=str(path.absolute()))
        if arm.name in arms:
            raise ConfigError(
                f"{path} and {arms[arm.name].policy} would both be called {arm.name!r}; use evaluate.checkpoints"
            )
        arms |= {one.name: one for one in [arm, *(presets.best_of(arm, n) for n in best_of)]}
    update = {"arms": [*(config.evaluate.arms or ["retry-sampled", "reflexion"]), *arms.values()]}
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=update)})


def checkpoint_name(path: Path) -> str:
    """``runs/mine`` → ``mine``; ``runs/mine/ppo/checkpoint-10`` → ``mine/ppo@10``."""
    training, step = checkpoint_of(path)
    return training if step is None else f"{training}@{step}"


def stage_seconds(config: RunConfig) -> dict[str, float]:
    """Wall time of each finished stage of the run, in the order in which they finished."""
    files = sorted(config.run_dir.glob(f"*/{MANIFEST}"), key=lambda file: file.stat().st_mtime)
    manifests = {file.parent.name: read_manifest(file.parent) for file in files if file.parent.name != STAGE.folder}
    return {name: manifest["seconds"] for name, manifest in manifests.items() if manifest and "seconds" in manifest}


def best_arm(arms: Sequence[Arm], outcomes: Mapping[str, Mapping[str, Outcome]]) -> Arm | None:
    """The arm with a trained model, otherwise with the untrained one, that solved most tasks at the last attempt.

    Of equal ones it is the one with the higher return, then the first.
    """
    for writer in (Writer.ADAPTER, Writer.BASE):
        best = [arm for arm in arms if arm.policy.writer is writer and arm.name in outcomes]
        for figure in ("success", "returns"):
            sums = [float(sum(getattr(o, figure)[-1] for o in outcomes[arm.name].values())) for arm in best]
            best = [best[index] for index in highest(sums)]
        if best:
            return best[0]
    return None


async def play_all(
    config: RunConfig, arms: Sequence[Arm], player: ArmPlayer, log: Log | None = None
) -> tuple[Outcomes, list[str]]:
    """Play ``arms``; return their outcomes, in the order of ``arms``, and notes for the reader of the results."""
    attempts = config.evaluate.attempts
    marks: dict[str, str] = {}
    played: dict[str, list[Record]] = {}
    outcomes: Outcomes = {}
    notes: list[str] = []
    # The shuffled arm needs what the best of the other arms wrote, so it is played last.
    for step, arm in enumerate(sorted(arms, key=lambda arm: arm.policy.writer is Writer.SHUFFLED), start=1):
        best: Arm | None = None
        if not player.tasks_of(arm):
            notes.append(f"{arm.name}: left out, the environment cannot play it on these tasks.")
            continue
        marks[arm.name] = fingerprint(arm, config)
        if arm.policy.writer is Writer.SHUFFLED:
            best = best_arm(arms, outcomes)
            if best is None:
                notes.append(f"{arm.name}: left out, no arm with a retrospective model was evaluated.")
                continue
            marks[arm.name] = fingerprint(arm, config, marks[best.name], *(task.id for task in player.tasks))
            notes.append(
                f"{arm.name}: reflections that {best.name} wrote for other tasks of the same kind and attempt."
            )
        try:
            records = await player.play(arm, marks[arm.name], played[best.name] if best else ())
        except NoDonorError as error:
            notes[-1] = f"{arm.name}: left out, {error}."
            continue
        played[arm.name] = records
        unreflected = [record for record in records if record.unreflected]
        if unreflected:
            notes.append(
                f"{arm.name}: {len(unreflected)} failed episodes could not be reflected on and were not retried, which "
                f"counts as failure; first of task {unreflected[0].episode.task.id}: {unreflected[0].unreflected}."
            )
        outcomes[arm.name] = {task: outcome(chain, attempts) for task, chain in chains(records).items()}
        if log:
            success = [o.success for o in outcomes[arm.name].values()]
            first, last = (sum(of_task[trial] for of_task in success) / len(success) for trial in (0, -1))
            log(step, arm=arm.name, success_first=first, success_last=last)
    for note in notes:
        logger.info("evaluate: %s", note)
    player.records.drop_stale(marks)
    return {arm.name: outcomes[arm.name] for arm in arms if arm.name in outcomes}, notes


def evaluation_keys(config: RunConfig) -> list[str]:
    """The config keys that decide the results. The reward is one if the algorithm learns from it: it names the arm."""
    return [
        "environment.name",
        "environment.options",
        "environment.tasks.test",
        "environment.tasks.offset",
        "actor",
        "memory",
        *READING_KEYS,
        *SAMPLING_KEYS,
        "ppo.algorithm",
        "evaluate",
        *(["ppo.reward"] if config.ppo.rewards else []),
    ]


STAGE = Stage(
    name="evaluate",
    folder="evaluation",
    reads=("memory", "sft", "reward", "ppo"),
    keys=evaluation_keys,
    not_deciding=("environment.prompts", "model.base", "model.revision", "model.lora"),
    inputs=evaluation_inputs,
    run=evaluate_arms,
    packages=("matplotlib",),
)
