"""``retro buffer``: imports logged trials, exports episodes, and shows what a buffer holds."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retro.database_url import in_namespace
from retro.layout import RunFolder

if TYPE_CHECKING:
    from retro.buffer import ReplayBuffer
    from retro.buffer.splits import SplitRule

buffer_app = typer.Typer(help="Import, show and export replay buffers.", no_args_is_help=True, rich_markup_mode=None)

DEFAULT = "runs/imported"
_BUFFER = "A run folder, an SQLite file, or a URL such as postgresql+psycopg://HOST/DATABASE?schema=RUN."
BufferOption = Annotated[str, typer.Option("--buffer", help=_BUFFER)]
BufferArgument = Annotated[str, typer.Argument(help=_BUFFER)]


class Format(StrEnum):
    JSONL = "jsonl"
    REFLEXION_LOGS = "reflexion-logs"
    OPENAI_MESSAGES = "openai-messages"
    OTEL_TRACES = "otel-traces"


def buffer_url(buffer: str) -> str:
    """The database URL of a run folder (by its config.yaml, if there is one), an SQLite file, or a URL."""
    if "://" in buffer:
        return buffer
    path = Path(buffer)
    if path.suffix in (".sqlite", ".sqlite3", ".db"):
        return f"sqlite:///{path}"
    config = _config_of(path)
    url = _value(config, "buffer", "url")
    if url is not None:
        return in_namespace(str(url), str(config.get("name", path.name)))
    return f"sqlite:///{RunFolder(path).buffer}"


@buffer_app.command("import")
def import_episodes(
    format: Annotated[Format, typer.Argument(help="What the files are.")],
    paths: Annotated[list[Path], typer.Argument(help="The files.")],
    buffer: BufferOption = DEFAULT,
    on_error: Annotated[
        Literal["refuse", "skip"], typer.Option(help="JSON lines: refuse a file with a bad line, or skip the line.")
    ] = "refuse",
    validation: Annotated[
        float, typer.Option(help="Share of tasks for validation, where the file says no split.")
    ] = 0.1,
    test: Annotated[float, typer.Option(help="Share of tasks for test, likewise.")] = 0.1,
    window: Annotated[
        int, typer.Option(min=1, help="How many of the latest reflections the actor saw, where a file does not say.")
    ] = 3,
    environment: Annotated[
        str | None, typer.Option(help="Conversations: the environment of all episodes, which names the prompts.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Conversations: where a line names its task; by default its opening is it."),
    ] = None,
    return_: Annotated[
        str | None, typer.Option("--return", metavar="PATH", help="Conversations: where its return in [0, 1] is.")
    ] = None,
    success: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Conversations: where it says whether it succeeded; by default return 1."),
    ] = None,
    reflection: Annotated[
        str | None, typer.Option(metavar="PATH", help="Conversations: where the reflection before a retry is.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Conversations: a function of a line that says all of this."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Conversations: only say what would be imported, line by line.")
    ] = False,
) -> None:
    """Add logged trials to a buffer.

    A file is added as a whole or not at all. The formats: docs/buffer.md.

    \b
    Examples:
      retro buffer import jsonl trials.jsonl --buffer runs/mine
      retro buffer import reflexion-logs reflexion_tuples.parquet --buffer runs/hotpotqa
      retro buffer import openai-messages log.jsonl --environment desk --task metadata.ticket --return score --dry-run
      retro buffer import otel-traces traces.jsonl --environment desk --return gen_ai.evaluation.score.value --dry-run
    """
    from retro.buffer import ReplayBuffer
    from retro.buffer.jsonl import import_jsonl
    from retro.buffer.splits import SplitRule
    from retro.config.extras import require

    splits = SplitRule(validation=validation, test=test)
    url = buffer_url(buffer)
    given = {"task": task, "return": return_, "success": success, "reflection": reflection, "rule": rule}
    if format in (Format.OPENAI_MESSAGES, Format.OTEL_TRACES):
        _import_conversations(format, paths, url, environment, given, on_error, splits, window, dry_run)
        return
    for name, value in {**given, "environment": environment, "dry-run": dry_run or None}.items():
        if value is not None:
            raise typer.BadParameter(
                f"only for openai-messages and otel-traces, not for {format}", param_hint=f"--{name}"
            )
    if format is Format.REFLEXION_LOGS:
        require("the import of reflexion-logs", "train", ("pyarrow",))
    with ReplayBuffer(url) as store:
        if format is Format.REFLEXION_LOGS:
            from retro.buffer.reflexion_logs import import_reflexion_logs

            reports = [import_reflexion_logs(store, paths, splits, window)]  # the files of one log complete one another
        else:
            reports = [import_jsonl(store, path, on_error, splits, window) for path in paths]
    for line in (line for report in reports for line in report.skipped):
        print(f"skipped {line}")
    added, present = sum(report.added for report in reports), sum(report.present for report in reports)
    print(f"{url}: {added:,} episodes added, {present:,} there already")


def _import_conversations(
    format: Format,
    paths: list[Path],
    url: str,
    environment: str | None,
    given: dict[str, str | None],
    on_error: Literal["refuse", "skip"],
    splits: SplitRule,
    window: int,
    dry_run: bool,
) -> None:
    from retro.buffer.log_rules import LogRule, load_rule
    from retro.buffer.message_logs import import_messages, message_lines, trace_conversations

    if environment is None:
        raise typer.BadParameter(f"{format} needs a name, such as that of your agent", param_hint="--environment")
    if given["rule"] is not None:
        beside = [name for name in ("task", "return", "success", "reflection") if given[name] is not None]
        if beside:
            raise typer.BadParameter(f"the function says this already: --{beside[0]}", param_hint="--rule")
        log = LogRule(environment, function=load_rule(given["rule"]))
    else:
        log = LogRule(environment, given["task"], given["return"] or "return", given["success"], given["reflection"])
    found = message_lines(paths) if format is Format.OPENAI_MESSAGES else trace_conversations(paths)
    with _opened(url, dry_run) as store:
        report = import_messages(store, found, log, on_error, splits, window, dry_run)
    for line in report.lines if dry_run else ():
        print(line)
    for line in report.skipped:
        print(f"{'cannot be imported' if dry_run else 'skipped'}: {line}")
    if report.repeated:
        print(
            f"retries whose opening has the text of their reflection: {report.repeated:,}. Training would see it "
            "twice; take it out of their messages (docs/buffer.md)"
        )
    if dry_run:
        print(
            f"{report.first_attempts:,} first attempts; compared with the attempt before, retries with a reflection: "
            f"{report.reflected}, without: {report.controls}"
        )
    if dry_run and report.skipped and on_error == "refuse":
        print(
            f"{url}: nothing would be added, because of the lines that cannot be imported ({len(report.skipped):,}): "
            "correct them, or leave them out with --on-error skip"
        )
        raise typer.Exit(2)  # as the import would end
    does = "would be added" if dry_run else "added"
    print(f"{url}: {report.added:,} episodes {does}, {report.present:,} there already")


def _opened(url: str, dry_run: bool) -> ReplayBuffer:
    """The buffer; for a dry run an empty one in memory, if its file is not there yet."""
    from retro.buffer import ReplayBuffer

    absent = url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists()
    return ReplayBuffer("sqlite://") if dry_run and absent else ReplayBuffer(url, create=not dry_run)


@buffer_app.command()
def stats(buffer: BufferArgument = DEFAULT) -> None:
    """Show what a buffer holds.

    \b
    Example:
      retro buffer stats runs/quickstart
    """
    from rich.console import Console

    from retro.buffer import ReplayBuffer
    from retro.buffer.stats import buffer_stats, stats_table

    with ReplayBuffer(buffer_url(buffer), create=False) as store:
        Console().print(stats_table(buffer_stats(store)))


@buffer_app.command()
def export(
    buffer: BufferArgument,
    path: Annotated[Path, typer.Argument(help="The JSONL file to write.")],
    environment: Annotated[str | None, typer.Option(help="Only this environment.")] = None,
    split: Annotated[Literal["train", "validation", "test"] | None, typer.Option(help="Only this split.")] = None,
) -> None:
    """Write a buffer's episodes as JSON lines.

    `retro buffer import jsonl` reads them back equal.

    \b
    Example:
      retro buffer export runs/quickstart episodes.jsonl --split train
    """
    from retro.buffer import ReplayBuffer
    from retro.buffer.jsonl import export_jsonl

    with ReplayBuffer(buffer_url(buffer), create=False) as store:
        count = export_jsonl(store, path, environment, split)
    print(f"{path}: {count:,} episodes")


@buffer_app.command()
def migrate(
    buffer: BufferArgument,
    window: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many of the latest reflections the actor saw; by default memory.size of the run, or 3."
        ),
    ] = None,
) -> None:
    """Bring a buffer of an earlier release up to date, in place.

    Earlier releases did not record what the actor was shown: that is derived once (docs/buffer.md).

    \b
    Example:
      retro buffer migrate runs/quickstart
    """
    from retro.buffer.migration import migrate as migrate_buffer

    size = _window_of(Path(buffer)) if window is None else window
    count = migrate_buffer(buffer_url(buffer), size)
    print(f"{buffer}: {count:,} episodes brought up to date" if count else f"{buffer}: is up to date")


def _window_of(run: Path) -> int:
    """``memory.size`` in the config of a run folder, by default 3."""
    from retro.buffer.recalled import WINDOW

    size = _value(_config_of(run), "memory", "size")
    return size if isinstance(size, int) and size > 0 else WINDOW


def _config_of(run: Path) -> dict[str, Any]:
    """The sections in the config of a run folder, which another release may have written; empty if there is none."""
    from retro.reading import read_yaml

    config = run / "config.yaml"
    tree = read_yaml(config) if config.is_file() else None
    return tree if isinstance(tree, dict) else {}


def _value(config: dict[str, Any], section: str, key: str) -> Any:
    tree = config.get(section)
    return tree.get(key) if isinstance(tree, dict) else None
