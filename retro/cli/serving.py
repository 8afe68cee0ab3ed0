"""``retro serve``: answers requests for reflections over HTTP."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from retro.agent.records import EXPORT, ExportRecord
from retro.cli.buffer import buffer_url
from retro.cli.logs import quieten
from retro.cli.reflecting import export_folder
from retro.config import ConfigError, ModelSection
from retro.config.extras import require

PACKAGES = ("fastapi", "prometheus_client", "uvicorn")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options of the command, as its help describes them."""

    host: str
    port: int
    name: str | None
    n: int
    max_n: int
    max_body: int
    active: int
    waiting: int
    timeout: float
    buffer: str | None


def serve_export(
    adapter: str, options: ServeOptions, base: str | None, prompts: str | None, trust_remote_code: bool
) -> None:
    """Load an export and serve it until a signal ends the process.

    Raises:
        ConfigError: if the extra is not installed, an option is wrong, or the address needs a key that is not set.
        ReplayBufferError: if the buffer cannot be opened.
    """
    require("retro serve", "serve", PACKAGES)
    if options.n > options.max_n:
        raise ConfigError(f"-n {options.n} is more than --max-n {options.max_n}")
    quieten()

    from retro.buffer import ReplayBuffer
    from retro.serving.access import check_address, read_key
    from retro.serving.app import make_app
    from retro.serving.limits import Limits
    from retro.serving.logs import log_as_json
    from retro.serving.recorder import Recorder
    from retro.serving.server import bind, run_until_signal
    from retro.serving.service import Service

    key = read_key()
    check_address(options.host, key)
    folder = export_folder(adapter)
    limits = Limits(options.max_body, options.max_n, options.active, options.waiting, options.timeout)
    with bind(options.host, options.port) as bound, ExitStack() as stack:
        buffer = None if options.buffer is None else stack.enter_context(ReplayBuffer(buffer_url(options.buffer)))
        from retro.agent.model import RetrospectiveModel

        model = RetrospectiveModel.load(folder, base=base, prompts=prompts, trust_remote_code=trust_remote_code)
        log_as_json()
        name, max_tokens = _described(folder)
        name = options.name or name
        recorder = None if buffer is None else Recorder(buffer, model.prompts.of("").name, name)
        service = Service(model, name, limits, options.n, max_tokens, recorder)
        stack.callback(service.close)
        run_until_signal(make_app(service, key), limits, bound)


def _described(folder: Path) -> tuple[str, int]:
    """What a server calls the model, and the tokens of its longest reflection."""
    name = folder.resolve().name
    if not (folder / EXPORT).is_file():
        return name, ModelSection.model_fields["max_new_tokens"].default
    record = ExportRecord.read(folder)
    return record.served_name or name, record.model.max_new_tokens
