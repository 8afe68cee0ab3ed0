"""The offline stages with a small pretrained model on the real HotPotQA logs: what the reward model and PPO come to.

    nohup python benchmarks/smollm2.py LOGS > smollm2.log &     # resumes when killed
    python benchmarks/smollm2.py --summarise                    # the tables of a finished run

LOGS is ``reflexion_tuples.parquet``. Writes the base to ``runs/smollm2`` (``scripts/make_smollm2.py``), imports the
logs, runs ``configs/hotpotqa-smollm2.yaml`` in ``runs/hotpotqa-smollm2``, and writes its tables to ``smollm2.md``
there. Values of the config can be replaced: ``--set ppo.steps=20``.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.training_report import measured
from retro.artifacts import write_atomically
from retro.cli.errors import one_line_errors
from retro.config import ConfigError
from retro.layout import RunFolder
from retro.reading import parse_json, read_json, read_lines
from retro.retrospective.reward_files import facts_file
from retro.stage import read_manifest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "hotpotqa-smollm2.yaml"
NAME = "hotpotqa-smollm2"
STAGES = ("sft", "reward", "ppo", "export")
SHARES = {"validation": 0.1, "test": 0.4}
"""Of the questions. Intervals are over test questions, so many are for testing."""
LABELS = {
    "accuracy": "accuracy of accepted / rejected",
    "majority": "accuracy of always the more frequent label",
    "difference": "difference of the two",
}
STEPS = ("score", "model_score", "length", "kl", "missing_end")


def run(arguments: argparse.Namespace) -> None:
    """Make what is missing: the base, the buffer, the stages.

    Raises:
        ConfigError: if one of the commands fails.
    """
    base, folder = arguments.runs / "smollm2", arguments.runs / NAME
    if not (base / "tokenizer.json").is_file():  # written last
        _python(ROOT / "scripts" / "make_smollm2.py", base)
    shares = (text for split, share in SHARES.items() for text in (f"--{split}", share))
    _python("-m", "retro.cli", "buffer", "import", "reflexion-logs", arguments.logs, "--buffer", folder, *shares)
    values = (f"runs={arguments.runs}", f"model.base={base}", *arguments.set)
    _python("-m", "retro.cli", "run", CONFIG, "--from", STAGES[0], "--until", STAGES[-1], *values)


def tables(folder: Path) -> str:
    """The tables of ``docs/results.md`` as Markdown.

    Raises:
        UnreadableError: if the run is not finished.
    """
    of_run = RunFolder(folder)
    figures = read_json(facts_file(of_run.reward))["test"]
    metrics = [parse_json(line) for _, line in read_lines(of_run.metrics)]
    seconds = {stage: (read_manifest(folder / stage) or {}).get("seconds", 0.0) for stage in STAGES}
    return "\n".join(
        [
            f"Test: {figures['reflections']} reflections on failures of {figures['tasks']} questions, "
            f"{figures['labels']['accepted']} of them accepted. 95 % intervals: a bootstrap over questions.",
            "",
            "| reward model | on test questions |",
            "|---|---|",
            *(f"| {text} | {measured(figures['labels'][key])} |" for key, text in LABELS.items()),
            f"| AUC | {measured(figures['auc'])} |",
            "",
            f"| PPO step | {' | '.join(name.replace('_', ' ') for name in STEPS)} |",
            "|---" * (1 + len(STEPS)) + "|",
            *(_step(line) for line in metrics if line["stage"] == "ppo" and "score" in line),
            "",
            "Wall time: " + ", ".join(f"{stage} {value:,.0f} s" for stage, value in seconds.items()) + ".",
            "",
        ]
    )


def _step(line: Mapping[str, Any]) -> str:
    return f"| {line['step']} | {' | '.join(f'{line[name]:.3f}' for name in STEPS)} |"


def _python(*arguments: object) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], check=False)
    if done.returncode:
        raise ConfigError(f"{' '.join(map(str, arguments))} ended with exit code {done.returncode}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="?", type=Path, help="reflexion_tuples.parquet")
    parser.add_argument("--summarise", action="store_true", help="only the tables of a finished run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the base and the run folder are")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="values of the config")
    arguments = parser.parse_args(argv)
    if arguments.logs is None and not arguments.summarise:
        parser.error("give LOGS, or --summarise")
    with one_line_errors():
        if not arguments.summarise:
            run(arguments)
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            print(f"CPU time of this call: {(used.ru_utime + used.ru_stime) / 60:.0f} minutes")
        text = tables(arguments.runs / NAME)
        write_atomically(arguments.runs / NAME / "smollm2.md", text)
        print(text)


if __name__ == "__main__":
    main()
