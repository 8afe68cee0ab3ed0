"""Every extension point and its built-in kinds. To add a kind, add its line to :data:`POINTS`."""

from __future__ import annotations

from dataclasses import dataclass

from retro.config.extras import missing


@dataclass(frozen=True, slots=True)
class Kind:
    """A built-in kind. Its module is imported when a config names it."""

    target: str
    """``module:Class``."""
    summary: str
    extra: str | None = None
    """The extra to install: ``pip install 'retro[…]'``."""
    packages: tuple[str, ...] = ()
    """The import names of the packages that the extra installs."""
    data: str = ""
    """How to get its data; empty if it needs none."""
    speed: tuple[str, ...] = ()
    """Options of a task set that change how fast it plays, not what happens. (The options of other kinds are sections,
    which mark such keys ``Speed``.)"""

    @property
    def missing(self) -> list[str]:
        """The packages that it needs but that are not installed."""
        return missing(self.packages)


@dataclass(frozen=True, slots=True)
class Point:
    """An extension point: a part of which there are several variants."""

    summary: str
    noun: str
    """What error messages call a class of it, with an article."""
    requires: tuple[str, ...]
    """The attributes that a class must have."""
    kinds: dict[str, Kind]


_BUILT = ("from_options",)

POINTS: dict[str, Point] = {
    "environment": Point(
        "where tasks are played",
        "a task set: name the class that derives from retro.envs.base.TaskSet",
        ("tasks", "make"),
        {
            "household": Kind(
                "retro.envs.household:HouseholdTasks",
                "a text household in ALFWorld's words; the quickstart's, built in",
            ),
            "hotpotqa": Kind(
                "retro.envs.hotpotqa:HotpotQATasks",
                "questions over two Wikipedia pages: Search, Lookup, Finish",
                extra="hotpotqa",
                packages=("bm25s", "pyarrow", "Stemmer"),
                data="hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json from hotpotqa.github.io",
            ),
            "alfworld": Kind(
                "retro.envs.alfworld:AlfworldTasks",
                "household tasks on the TextWorld engine",
                extra="alfworld",
                packages=("alfworld", "pyarrow", "textworld"),
                data="the folder json_2.1.1, by the package's command alfworld-download",
                speed=("workers", "games_per_worker"),
            ),
            "webshop": Kind(
                "retro.envs.webshop:WebshopTasks",
                "a shop of real products: find and buy what an instruction asks for",
                extra="webshop",
                packages=("bm25s", "pyarrow", "Stemmer"),
                data="items_shuffle.json, items_ins_v2.json and items_human_ins.json of princeton-nlp/WebShop",
                speed=("prepared",),
            ),
            "scienceworld": Kind(
                "retro.envs.scienceworld:ScienceworldTasks",
                "30 kinds of elementary science experiments",
                extra="scienceworld",
                packages=("scienceworld",),
                speed=("engines",),
            ),
            "textworld-express": Kind(
                "retro.envs.textworld_express:TextworldExpressTasks",
                "short text games: coin, cooking, sorting, arithmetic …",
                extra="textworld-express",
                packages=("textworld_express",),
                speed=("engines",),
            ),
            "gymnasium": Kind(
                "retro.envs.gymnasium:GymnasiumTasks",
                "any gymnasium.Env with text observations and actions",
                extra="gymnasium",
                packages=("gymnasium",),
            ),
            "openenv": Kind(
                "retro.envs.openenv:OpenEnvTasks",
                "any OpenEnv server whose actions can be written as texts",
                extra="openenv",
                packages=("openenv",),
                speed=("timeout",),
            ),
            "verifiers": Kind(
                "retro.envs.verifiers:VerifiersTasks",
                "any text environment of the library verifiers, in a process of its own",
                extra="verifiers",
                speed=("python", "timeout"),
            ),
            "mixture": Kind("retro.envs.mixture:MixtureTasks", "the tasks of several environments, in turn"),
        },
    ),
    "actor": Point(
        "the frozen language model that plays",
        "an actor",
        _BUILT,
        {
            "local": Kind("retro.actors.local:LocalActor", "a transformers checkpoint in this process"),
            "openai": Kind("retro.actors.openai:OpenAIActor", "any OpenAI-compatible endpoint"),
        },
    ),
    "memory": Point(
        "what carries experience into the actor's prompt",
        "a memory",
        _BUILT,
        {
            "window": Kind("retro.memory.window:ReflectionWindow", "the latest reflections on this task (Reflexion)"),
            "trajectories": Kind(
                "retro.memory.trajectories:NearestTrajectories",
                "a bank: the solved trajectory of the most similar other task, verbatim",
                extra="memory",
                packages=("sklearn",),
            ),
            "retrieval": Kind(
                "retro.memory.retrieval:UtilityRetrieval",
                "a bank: reflections of similar other tasks, by similarity and by what came of them",
                extra="memory",
                packages=("sklearn",),
            ),
            "procedures": Kind(
                "retro.memory.procedures:ProcedureBank",
                "a bank: steps that led to rewards, by their expected utility (MACLA)",
                extra="memory",
                packages=("sklearn",),
            ),
            "playbook": Kind(
                "retro.memory.playbook:Playbook",
                "a bank: sentences of reflections, by how often they helped and did harm (ACE)",
                extra="memory",
                packages=("sklearn",),
            ),
        },
    ),
    "generator": Point(
        "what samples the retrospective model's tokens",
        "a generator",
        _BUILT,
        {
            "engine": Kind("retro.retrospective.generator:EngineGenerator", "our engine, on the base that is trained"),
            "vllm": Kind(
                "retro.retrospective.vllm:VllmGenerator", "a vLLM server, which gets every new adapter while it runs"
            ),
        },
    ),
    "sampler": Point(
        "how one reflection is chosen among those that the model could write",
        "a sampler",
        _BUILT,
        {
            "first": Kind("retro.retrospective.samplers.first:First", "the first one that is drawn"),
            "best_of": Kind(
                "retro.retrospective.samplers.best_of:BestOf", "the best of N by the reward model's score (Best-of-N)"
            ),
            "backtrack": Kind(
                "retro.retrospective.samplers.backtrack:Backtrack",
                "a walk over sentences that can go back, led by the reward model (VGB)",
            ),
            "refine": Kind(
                "retro.retrospective.samplers.refine:Refine",
                "the policy criticises and rewrites its reflection (Self-Refine)",
            ),
        },
    ),
    "runner": Point(
        "what plays many attempts at once",
        "a runner",
        _BUILT,
        {
            "local": Kind("retro.rollout.runner:LocalRunner", "this process, actor.concurrency attempts at once"),
            "processes": Kind(
                "retro.rollout.processes:ProcessesRunner", "several processes of this machine, each with its own actor"
            ),
            "ray": Kind(
                "retro.rollout.ray_runner:RayRunner",
                "the workers of a Ray cluster, each with its own actor",
                extra="ray",
                packages=("ray",),
            ),
        },
    ),
    "reward": Point(
        "a term of what a sampled reflection is worth to the algorithm",
        "a reward",
        ("Options", "needs"),
        {
            "environment": Kind(
                "retro.training.rewards.environment:EnvironmentReward",
                "the actor's own retry with the reflection: the true gain in return",
            ),
            "over_control": Kind(
                "retro.training.rewards.over_control:OverControlReward",
                "the actor's retry beyond the mean of retries without a reflection",
            ),
            "model": Kind("retro.training.rewards.model:ModelReward", "the learnt reward model's score"),
            "length": Kind("retro.training.rewards.length:LengthReward", "shaping: tokens beyond a soft limit cost"),
            "format": Kind(
                "retro.training.rewards.format:FormatReward",
                "shaping: being empty, cut, repetitive or a continuation of the prompt costs",
            ),
        },
    ),
    "algorithm": Point(
        "what turns rewards, or rated reflections, into updates of the policy",
        "an algorithm",
        _BUILT,
        {
            "ppo": Kind("retro.training.algorithms.ppo:Ppo", "proximal policy optimisation, our own"),
            "grpo": Kind(
                "retro.training.algorithms.grpo:Grpo",
                "group relative policy optimisation, by TRL's trainer",
                extra="train",
                packages=("datasets", "trl"),
            ),
            "dpo": Kind(
                "retro.training.algorithms.dpo:Dpo",
                "direct preference optimisation on the buffer's ratings, by TRL's trainer",
                extra="train",
                packages=("datasets", "trl"),
            ),
        },
    ),
}
