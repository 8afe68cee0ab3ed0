"""Runs the server until a signal ends it."""

from __future__ import annotations

import logging
import math
import signal
import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from retro.config import ConfigError
from retro.serving.limits import Limits

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 5
_IDLE_SECONDS = 75
"""Until an idle connection is closed: longer than clients keep one (httpx, and so OpenAI's client, 5 s; uvicorn's own
default is the same). Who closes first must be the client, or a request that it sends at that moment is lost."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: until the server runs, connections are refused.

    Raises:
        ConfigError: if another program has the port, or the address is not of this machine.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: {reason}; give another one") from None
    return bound


class Server(uvicorn.Server):
    """Logs its address as soon as it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for bound in sockets or () if self.started else ():
            host, port = bound.getsockname()[:2]
            name = f"[{host}]" if ":" in host else host
            logger.info("serving", extra={"fields": {"url": f"http://{name}:{port}"}})


def make_server(app: ASGIApp, limits: Limits) -> Server:
    """A server that answers what it has begun before it ends, and meanwhile refuses connections."""
    return Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=math.ceil(limits.seconds) + _GRACE_SECONDS,
        )
    )


def run_until_signal(app: ASGIApp, limits: Limits, bound: socket.socket) -> None:
    """Serve on ``bound`` until SIGTERM or SIGINT; return once every request that was begun is answered."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has ended
            signal.signal(number, lambda *_: None)
    make_server(app, limits).run(sockets=[bound])
    logger.info("stopped")
