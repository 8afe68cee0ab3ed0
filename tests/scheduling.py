"""Which tests pytest-xdist gives to one process: those of one file, and those that share the slowest fixture."""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[1]
SLOWEST_FIXTURE = "whole_run"
"""A run of all stages (``tests/pipeline/conftest.py``): each process that needs it makes one of its own."""


class FilesByFixture(LoadFileScheduling):
    """``--dist loadfile``, except that all files whose tests use the slowest fixture count as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return SLOWEST_FIXTURE if file in _FILES else file


_FILES = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "tests" / "pipeline").glob("test_*.py")
    if SLOWEST_FIXTURE in path.read_text(encoding="utf-8")
}
