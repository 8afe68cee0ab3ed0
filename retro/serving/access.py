"""Who may connect: the API key, and the addresses that need one."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from retro.config import ConfigError
from retro.serving.failures import RequestError

KEY = "RETRO_API_KEY"
_LOCALHOST = "localhost"


def read_key() -> str | None:
    """The key that requests must carry; None if the variable is not set.

    Raises:
        ConfigError: if it holds something that cannot be sent in a header.
    """
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the environment variable {KEY} holds spaces or characters that a key cannot have")
    return key or None


def check_address(host: str, key: str | None) -> None:
    """Refuse to serve other machines without a key.

    Raises:
        ConfigError: naming the address and the variable.
    """
    if key is None and not is_local(host):
        raise ConfigError(
            f"--host {host} lets other machines connect, and {KEY} is not set: set it to a long random text, which "
            "clients then send as their API key, or leave --host out to serve this machine alone"
        )


def is_local(host: str) -> bool:
    """Whether only this machine can connect to ``host``, an address or a name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == _LOCALHOST


class Access:
    """Decides whether a request may be answered.

    Args:
        key: What requests must carry. None: no key is needed, and requests must name this machine, so that a web page
            in a browser cannot reach the server by a name of its own (DNS rebinding).
    """

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises RequestError if the request must be refused.

        Args:
            headers: Their names are in lower case.
        """
        if self._key is None:
            if not is_local(_hostname(headers.get("host", ""))):
                raise RequestError(403, "foreign_host", "This server answers only requests to localhost.")
            if "origin" in headers and not is_local(_hostname(headers["origin"].partition("//")[2])):
                raise RequestError(403, "foreign_origin", "This server does not answer web pages of other sites.")
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise _unauthorized("The API key is missing: send the server's in the header Authorization: Bearer KEY.")
        if not hmac.compare_digest(given.encode(), self._key):
            raise _unauthorized(f"The API key is wrong: send the server's, the value of {KEY} when it was started.")


def _unauthorized(message: str) -> RequestError:
    return RequestError(401, "invalid_api_key", message, {"WWW-Authenticate": "Bearer"})


def _hostname(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
