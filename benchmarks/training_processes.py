"""Parts of a long benchmark in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

SECONDS = 60
"""Between two reports."""


class Processes:
    """Runs parts of a benchmark in processes of their own, one thread each, and says each minute how far they are."""

    def __init__(self, folder: Path, workers: int, argv: Sequence[str]) -> None:
        self._folder, self._workers = folder, workers
        self._command = [sys.executable, os.path.abspath(sys.argv[0]), *argv]
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._folder.mkdir(parents=True, exist_ok=True)
        self._going: dict[str, Path] = {}

    def run(self, parts: Sequence[str]) -> None:
        """Run the parts, each as the same command with ``--only PART``, ``workers`` at a time.

        Raises:
            SystemExit: if a part failed; the others are run to their end first.
        """
        done = Event()
        reporter = Thread(target=self._report, args=(done,), daemon=True)
        reporter.start()
        try:
            with ThreadPoolExecutor(self._workers) as pool:
                codes = list(pool.map(self._one, parts))
        finally:
            done.set()
            reporter.join()
        if any(codes):
            raise SystemExit(
                f"{sum(map(bool, codes))} of {len(codes)} parts failed; the same command continues where they stopped"
            )

    def _one(self, part: str) -> int:
        self._going[part] = log = self._folder / f"{part.replace(':', '-')}.log"
        with log.open("a", encoding="utf-8") as out:
            code = subprocess.run(
                [*self._command, "--only", part],
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        del self._going[part]
        print(f"{time.strftime('%H:%M')} {part}: {'done' if code == 0 else f'failed ({code}), see {log}'}", flush=True)
        return code

    def _report(self, done: Event) -> None:
        while not done.wait(SECONDS):
            for part, log in dict(self._going).items():
                print(f"{time.strftime('%H:%M')} {part}: {_last_line(log)}", flush=True)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return lines[-1].strip() if lines else "begins"
