"""``retro serve`` and ``retro mcp``: answer requests for reflections, over HTTP or on standard input and output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from retro.agent.records import EXPORT, ExportRecord
from retro.cli.buffer import buffer_url
from retro.cli.reflecting import export_folder
from retro.config import ConfigError, ModelSection
from retro.config.extras import require

if TYPE_CHECKING:
    from retro.serving.service import Service

PACKAGES = ("fastapi", "prometheus_client", "uvicorn")
MCP_PACKAGES = ("mcp_types", *PACKAGES)
"""Version 1 of the package ``mcp`` has no ``mcp_types``."""


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """The options of both commands, as their help describes them."""

    n: int
    timeout: float
    buffer: str | None
    base: str | None
    prompts: str | None
    trust_remote_code: bool
    server: str | None
    server_model: str | None
    name: str | None = None
    max_n: int = 32
    max_body: int = 2**20
    active: int = 16
    waiting: int = 64


def serve_export(adapter: str, host: str, port: int, options: ServiceOptions) -> None:
    """Load an export and serve it until a signal ends the process.

    Raises:
        ConfigError: if the extra is not installed, an option is wrong, or the address needs a key that is not set.
        ExportError: if the folder cannot be loaded.
        ReplayBufferError: if the buffer cannot be opened.
    """
    _check("serve", PACKAGES, options)

    from retro.serving.access import check_address, read_key
    from retro.serving.app import make_app
    from retro.serving.server import bind, run_until_signal

    key = read_key()
    check_address(host, key)
    with bind(host, port) as bound, _service(adapter, options) as service:
        run_until_signal(make_app(service, key), service.limits, bound)


def serve_on_stdio(adapter: str, options: ServiceOptions) -> None:
    """Load an export and speak the Model Context Protocol until standard input ends.

    Raises:
        ConfigError: if the extra is not installed, or an option is wrong.
        ExportError: if the folder cannot be loaded.
        ReplayBufferError: if the buffer cannot be opened.
    """
    _check("mcp", MCP_PACKAGES, options)

    from retro.serving.mcp_stdio import run_on_stdio

    with ExitStack() as stack:
        with _stdout_on_stderr():
            service = stack.enter_context(_service(adapter, options))
        run_on_stdio(service)


def _check(command: str, packages: tuple[str, ...], options: ServiceOptions) -> None:
    require(f"retro {command}", "serve", packages)
    if options.n > options.max_n:
        raise ConfigError(f"-n {options.n} is more than --max-n {options.max_n}")


@contextmanager
def _service(adapter: str, options: ServiceOptions) -> Iterator[Service]:
    """The model of an export, behind the limits of the options; the log is JSON from then on."""
    from retro.buffer import ReplayBuffer
    from retro.serving.limits import Limits
    from retro.serving.logs import log_as_json
    from retro.serving.recorder import Recorder
    from retro.serving.service import Service

    folder = export_folder(adapter)
    limits = Limits(options.max_body, options.max_n, options.active, options.waiting, options.timeout)
    with nullcontext() if options.buffer is None else ReplayBuffer(buffer_url(options.buffer)) as buffer:
        from retro.agent.model import RetrospectiveModel

        model = RetrospectiveModel.load(
            folder,
            base=options.base,
            prompts=options.prompts,
            server=options.server,
            server_model=options.server_model,
            trust_remote_code=options.trust_remote_code,
        )
        log_as_json()
        name, max_tokens = _described(folder)
        name = options.name or name
        recorder = None if buffer is None else Recorder(buffer, model.prompts.of("").name, name)
        service = Service(model, name, limits, options.n, max_tokens, recorder)
        try:
            yield service
        finally:
            service.close()


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Send to standard error what anything prints, libraries in C included: the protocol alone owns standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _described(folder: Path) -> tuple[str, int]:
    """What a server calls the model, and the tokens of its longest reflection."""
    name = folder.resolve().name
    if not (folder / EXPORT).is_file():
        return name, ModelSection.model_fields["max_new_tokens"].default
    record = ExportRecord.read(folder)
    return record.served_name or name, record.model.max_new_tokens
