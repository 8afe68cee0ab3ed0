"""Runs ``retro`` commands, each in a fork of one process that has imported everything: a second instead of four.

Not a script: benchmarks/hostile_files.py talks to it by JSON lines.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

_MOST_BYTES = 8 * 2**30
"""Of addresses: what is at fault must not take the machine's memory."""


def main() -> None:
    """A line ``{"arguments": [...], "folder": ..., "seconds": ...}`` in, a line about how it ended out."""
    import peft  # noqa: F401 - what the commands need, once for all forks
    import torch
    import transformers  # noqa: F401

    import retro.agent.loading
    import retro.cli
    import retro.training.collect  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        answers.write(json.dumps(_run(asked["arguments"], Path(asked["folder"]), asked["seconds"])) + "\n")
        answers.flush()


def _run(arguments: list[str], folder: Path, seconds: float) -> dict[str, object]:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _command(arguments, folder)
    status, usage, hung = _wait(child, began + seconds)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "hung": hung,
        "seconds": time.monotonic() - began,
        "bytes": usage.ru_maxrss * 1024,
    }


def _wait(child: int, deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage, False
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage, True
        time.sleep(0.005)


def _command(arguments: list[str], folder: Path) -> None:
    """In the fork: the command as a shell would start it; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["retro", *arguments]
        from retro.cli import main as retro

        try:
            retro()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
