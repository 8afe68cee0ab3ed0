"""The leases of a run: a run that was started twice by mistake is refused before it writes anything."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from retro.buffer.engine import database_url
from retro.buffer.lease import NamespaceLease
from retro.config import RunConfig
from retro.layout import RunFolder
from retro.lease import FileLease, kept
from retro.stage import Stage


@contextmanager
def leased(config: RunConfig, stages: Sequence[Stage]) -> Iterator[None]:
    """Hold the lease of the run's folder, and that of its name in PostgreSQL if ``stages`` use a buffer there.

    Of several processes that were launched together, the first one holds them for all.

    Raises:
        LeaseHeldError: if another process holds one of them.
        LeaseLostError: if one of them is lost while the block runs.
    """
    with ExitStack() as held:
        if os.environ.get("RANK", "0") == "0":
            config.run_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(kept(FileLease(RunFolder(config.run_dir).lease, f"run {config.run_dir}")))
            if any("collect" in (stage.name, *stage.reads) for stage in stages) and _is_postgresql(config.buffer_url):
                held.enter_context(kept(NamespaceLease(config.buffer_url, config.name)))
        yield


def _is_postgresql(url: str) -> bool:
    return database_url(url).get_backend_name() == "postgresql"
