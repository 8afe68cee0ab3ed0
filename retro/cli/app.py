"""The commands and their help. Each body only calls the module that does the work: ``--help`` loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retro.cli.buffer import buffer_app
from retro.cli.environments import env_app
from retro.cli.logs import quieten
from retro.cli.memory import STAGE, memory_app

if TYPE_CHECKING:
    from retro.config import RunConfig

app = typer.Typer(
    help="Train the retrospective model of a frozen LLM agent, and play with it.\n\nBegin with: retro quickstart",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(buffer_app, name="buffer")
app.add_typer(env_app, name="env")
app.add_typer(memory_app, name="memory")

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="The YAML config, for example configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key.sub=value]", help="Values that replace the config's, written as YAML."),
]

First = Annotated[str | None, typer.Option("--from", help="The first stage to run.")]
Last = Annotated[str | None, typer.Option("--until", help="The last stage to run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print config, plan and estimates; run nothing.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from retro import __version__

        print(__version__)
        raise typer.Exit
    quieten()


@app.command()
def quickstart(
    overrides: Overrides = None,
    first: First = None,
    last: Last = None,
    dry_run: DryRun = False,
) -> None:
    """Run the whole pipeline with the two small models that come along.

    It takes about ten minutes on two cores, without a GPU, a network or a key. It is retro run with the config
    configs/quickstart.yaml, and needs no clone. The run folder is runs/quickstart in the working folder.

    \b
    Examples:
      retro quickstart
      retro quickstart name=small environment.tasks.train=50 environment.tasks.test=50 ppo.steps=5
    """
    from retro.cli.quickstart import quickstart_config
    from retro.layout import RunFolder

    resolved = quickstart_config(overrides or ())
    _run(resolved, str(RunFolder(resolved.run_dir).config), first, last, dry_run)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    first: First = None,
    last: Last = None,
    dry_run: DryRun = False,
) -> None:
    """Run the whole pipeline, or a part of it.

    The stages are collect, memory (only if the memory learns across tasks), sft, reward, ppo, export and evaluate. One
    that is up to date is skipped and an interrupted one resumes, so the same command completes a killed run.

    \b
    Examples:
      retro run configs/quickstart.yaml
      retro run configs/quickstart.yaml name=more ppo.steps=60 --from ppo
      retro run configs/quickstart.yaml --dry-run
    """
    from retro.config import load_config

    _run(load_config(config, overrides or ()), config, first, last, dry_run)


def _run(resolved: RunConfig, config: str, first: str | None, last: str | None, dry_run: bool) -> None:
    from retro.cli.pipeline import dry_run_pipeline, run_pipeline
    from retro.cli.stages import stage_range

    stages = [stage for stage in stage_range(first, last) if stage.applies(resolved)]
    if dry_run:
        dry_run_pipeline(resolved, stages)
    else:
        run_pipeline(resolved, stages, config)


def _stage_command(stage: str, does: str, group: typer.Typer = app, name: str = "") -> None:
    """Register ``retro STAGE CONFIG …``: with a ``name``, as a hidden command of a group that has more commands."""

    def command(config: Config, overrides: Overrides = None) -> None:
        from retro.cli.pipeline import run_pipeline
        from retro.cli.stages import stage_named
        from retro.config import load_config

        run_pipeline(load_config(config, overrides or ()), (stage_named(stage),), config)

    example = f"\b\nExample:\n  retro {stage} configs/quickstart.yaml name=quickstart"
    group.command(name or stage, help=f"{does}\n\n{example}", hidden=bool(name))(command)


_stage_command("collect", "Play, reflect, retry; fill the replay buffer.")
_stage_command("memory", "Let a memory that learns across tasks learn from the buffer.", memory_app, STAGE)
_stage_command("sft", "Fine-tune on the reflections that helped.")
_stage_command("reward", "Train the reward model.")
_stage_command("ppo", "Train the policy, from the SFT adapter on.")
_stage_command("export", "Write the adapters in plain PEFT format.")
_stage_command("evaluate", "Play the test tasks with every arm; report.")


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(help="A run folder, for example runs/quickstart.")]) -> None:
    """Rebuild tables, plot and report of a run.

    They are drawn from what was measured; nothing is played again. A run that has not been evaluated yet gets a page
    about its stages so far, also while it goes on.

    \b
    Example:
      retro report runs/quickstart
    """
    from retro.cli.pipeline import report_run

    report_run(run_dir)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, each with a training seed of its own.")],
    arms: Annotated[
        tuple[str, str] | None, typer.Option(metavar="ARM ARM", help="Two arms; by default all planned pairs.")
    ] = None,
) -> None:
    """Compare arms over several runs, each trained with another seed.

    The intervals are about training again, which no figure of a single run is. The runs must have been evaluated on
    the same tasks.

    \b
    Examples:
      retro compare runs/seed-0 runs/seed-1 runs/seed-2
      retro compare runs/seed-0 runs/seed-1 runs/seed-2 --arms ppo-env retry-sampled
    """
    from retro.cli.comparing import compare_runs

    compare_runs(runs, arms)


AdapterArgument = Annotated[str, typer.Argument(help="An export folder, a run folder or a plain PEFT adapter.")]
BaseOption = Annotated[str | None, typer.Option(help="Where the base model lies; by default where the adapter says.")]
PromptsOption = Annotated[
    str | None, typer.Option(help="The environment whose prompts are used; a plain adapter names none.")
]
ServerOption = Annotated[
    str | None, typer.Option(help="The URL of an OpenAI-compatible server that has the adapter loaded.")
]
ServerModelOption = Annotated[
    str | None, typer.Option(help="What the server calls it; by default the name in retro.json.")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let the base run Python code of its own, with all your rights.")
]


@app.command()
def reflect(
    adapter: AdapterArgument,
    trajectory: Annotated[
        Path | None, typer.Option("--trajectory", help="The trajectory's JSON file; standard input without it.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Reflections sampled; the one with the best score is kept.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    base: BaseOption = None,
    prompts: PromptsOption = None,
    server: ServerOption = None,
    server_model: ServerModelOption = None,
    no_scores: Annotated[bool, typer.Option("--no-scores", help="Load no reward model; draw one reflection.")] = False,
    trust_remote_code: TrustOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print text, score and all candidates as JSON.")] = False,
) -> None:
    """Print the Best-of-N reflection on a trajectory.

    The trajectory is JSON: {"opening": "...", "steps": [{"action": "...", "observation": "...", "reward": 0.0}]}.

    \b
    Examples:
      retro reflect runs/quickstart/export < trajectory.json
      retro reflect runs/quickstart/export --server http://localhost:8000/v1 < trajectory.json
    """
    from retro.cli.reflecting import reflect_on

    reflect_on(
        *(adapter, trajectory, n, seed, as_json),
        base=base,
        prompts=prompts,
        server=server,
        server_model=server_model,
        scores=not no_scores,
        trust_remote_code=trust_remote_code,
    )


CountOption = Annotated[int, typer.Option("-n", min=1, help="Reflections drawn if a request does not say how many.")]
TimeoutOption = Annotated[float, typer.Option(min=0.1, help="Seconds until a request is given up.")]
RecordOption = Annotated[
    str | None,
    typer.Option("--buffer", help="Record failed attempts, reflections and outcomes there: a run folder or a URL."),
]


@app.command()
def serve(
    adapter: AdapterArgument,
    host: Annotated[str, typer.Option(help="An address that others can reach needs RETRO_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = 8080,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; by default the name in retro.json.")
    ] = None,
    n: CountOption = 8,
    max_n: Annotated[int, typer.Option(min=1, help="The most that a request may ask for.")] = 32,
    max_body: Annotated[int, typer.Option(min=1024, help="The longest body, in bytes.")] = 2**20,
    active: Annotated[int, typer.Option(min=1, help="Requests that the model works on at once.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; one more gets status 429.")] = 64,
    timeout: TimeoutOption = 300.0,
    buffer: RecordOption = None,
    base: BaseOption = None,
    prompts: PromptsOption = None,
    server: ServerOption = None,
    server_model: ServerModelOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Answer requests for reflections over HTTP.

    Requests that arrive together are computed together. RETRO_API_KEY is the key that clients must send; without it the
    server answers this machine alone. SIGTERM ends it after the requests that it has begun. Needs retro[serve].

    \b
    Examples:
      retro serve runs/quickstart/export
      retro serve runs/quickstart/export --buffer runs/served
      retro serve runs/hotpotqa/export --server http://localhost:8000/v1
    """
    from retro.cli.serving import ServiceOptions, serve_export

    loaded = (base, prompts, trust_remote_code, server, server_model)
    options = ServiceOptions(n, timeout, buffer, *loaded, name, max_n, max_body, active, waiting)
    serve_export(adapter, host, port, options)


@app.command()
def mcp(
    adapter: AdapterArgument,
    n: CountOption = 8,
    timeout: TimeoutOption = 300.0,
    buffer: RecordOption = None,
    base: BaseOption = None,
    prompts: PromptsOption = None,
    server: ServerOption = None,
    server_model: ServerModelOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Give an agent the tools reflect and report_outcome (Model Context Protocol).

    The agent's program starts this command and speaks with it through standard input and output. To serve several
    agents use retro serve, which has the same tools at /mcp. Needs retro[serve].

    \b
    Example:
      retro mcp runs/quickstart/export --buffer runs/served
    """
    from retro.cli.serving import ServiceOptions, serve_on_stdio

    loaded = (base, prompts, trust_remote_code, server, server_model)
    options = ServiceOptions(n, timeout, buffer, *loaded, max_n=max(n, 32))
    serve_on_stdio(adapter, options)


@app.command("list")
def list_() -> None:
    """List every kind that a config can name, and what it still needs.

    \b
    Example:
      retro list
    """
    from retro.cli.kinds import list_kinds

    list_kinds()


@app.command()
def migrate(path: Annotated[Path, typer.Argument(help="A config, or a run folder.")]) -> None:
    """Rewrite a config of an earlier release in the keys of this one.

    The old file is kept beside the new one as *.before. Finished stages of a run folder stay finished. Its buffer is
    brought up to date by: retro buffer migrate RUN

    \b
    Examples:
      retro migrate configs/mine.yaml
      retro migrate runs/mine
    """
    from retro.cli.migrating import migrate_config

    migrate_config(path)


@app.command()
def doctor() -> None:
    """Print versions, devices, and what would run where.

    \b
    Example:
      retro doctor
    """
    from retro.cli.doctor import examine

    examine()
