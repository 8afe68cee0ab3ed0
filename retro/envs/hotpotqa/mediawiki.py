"""A polite client of a MediaWiki server: one request at a time, cached answers, pauses when the server asks for them.

It follows https://www.mediawiki.org/wiki/API:Etiquette and https://meta.wikimedia.org/wiki/User-Agent_policy.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from retro import __version__
from retro.envs.base import EnvironmentFailedError
from retro.reading import DATA_BYTES, UnreadableError, cut, parse_json

if TYPE_CHECKING:
    import httpx

RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})
RETRIED_ERRORS = ("maxlag", "ratelimited", "readonly", "internal_api_error")
"""The beginnings of error codes that may pass."""
LONGEST_PAUSE_SECONDS = 120.0
MAX_ANSWER_BYTES = DATA_BYTES
"""The limit before and after unpacking."""
MAX_REDIRECTS = 5

_COMMON = {"action": "query", "format": "json", "formatversion": "2", "maxlag": "5"}


class _TryAgain(Exception):
    """A request failed in a way that may pass; ``after`` is the pause in seconds that the server asks for."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class MediaWiki:
    """The query module of a MediaWiki's ``api.php``. Several threads may use it.

    Args:
        base_url: the address of ``api.php``.
        cache: a file that keeps every answer; without one, answers are kept until :meth:`close`.
        timeout_seconds: the longest silence of one request, and about half of its longest duration.
        contact: an address or page at which the server's operators can reach the user.
        max_retries: how often a request is repeated after timeouts, lost connections, rate limits and server errors.
        pause: waits for some seconds.

    Raises:
        ValueError: if ``cache`` is a file of another kind.
    """

    def __init__(
        self,
        base_url: str,
        cache: str | None = None,
        timeout_seconds: float = 20.0,
        contact: str = "",
        max_retries: int = 5,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._base_url = base_url
        self._answers = _Answers(cache)
        self._timeout_seconds = timeout_seconds
        about = f"retrospective models of language agents; {contact or 'no contact given'}"
        self.user_agent = f"retro/{__version__} ({about}) python-httpx"
        self._max_retries = max_retries
        self._pause = pause
        self._requesting = Lock()
        self._client: httpx.Client | None = None
        self._is_down = False

    def query(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """The answer to ``action=query`` with ``parameters``.

        Raises:
            EnvironmentFailedError: if there is none after all retries. Then further requests are sent only once, until
                one succeeds.
        """
        request = json.dumps([self._base_url, sorted(parameters.items())])
        known = self._answers.get(request)
        if known is not None:
            return known
        with self._requesting:
            known = self._answers.get(request)  # another thread may have asked for it meanwhile
            if known is None:
                known = self._asked_until_answered({**_COMMON, **parameters})
                self._answers.put(request, known)
        return known

    def close(self) -> None:
        """Close the connections and the cache."""
        with self._requesting:
            if self._client is not None:
                self._client.close()
                self._client = None
            self._answers.close()

    def _asked_until_answered(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        retries = 0 if self._is_down else self._max_retries
        for attempt in range(retries + 1):
            try:
                answer = self._asked(parameters)
            except _TryAgain as error:
                after = 2.0**attempt if error.after is None else error.after
                if attempt == retries or after > LONGEST_PAUSE_SECONDS:
                    self._is_down = True
                    wants = f"; it asks for a pause of {after:,.0f} s" if error.after else ""
                    raise self._failed(f"{error} ({attempt + 1} requests{wants})") from None
                self._pause(after)
            else:
                self._is_down = False
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _asked(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        import httpx

        if self._client is None:
            headers = {"User-Agent": self.user_agent, "Accept-Encoding": "gzip"}
            self._client = httpx.Client(headers=headers, timeout=self._timeout_seconds)
        try:
            response, body = self._sent(self._client, parameters)
        except httpx.HTTPError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from None
        pause = _seconds_asked_for(response.headers.get("Retry-After"))
        if response.status_code in RETRIED_STATUS:
            raise _TryAgain(f"HTTP status {response.status_code}", pause)
        if response.status_code == 403:
            raise self._failed("HTTP status 403; set environment.options.wikipedia.contact, as the server may ask for")
        if response.status_code != 200:
            raise self._failed(f"HTTP status {response.status_code}; is base_url the address of its api.php?")
        return self._understood(body, pause)

    def _sent(self, client: httpx.Client, parameters: Mapping[str, str]) -> tuple[httpx.Response, bytes]:
        """The response and its body, after redirects within the same host."""
        request = client.build_request("GET", self._base_url, params=dict(parameters))
        for _ in range(MAX_REDIRECTS + 1):
            with closing(client.send(request, stream=True)) as response:
                onward = response.next_request
                if onward is None:
                    return response, self._body(response)
            if onward.url.host != request.url.host:
                raise self._failed(
                    f"it redirects to {cut(onward.url.host)}: if you trust that host, name it in base_url"
                )
            request = onward
        raise self._failed(f"more than {MAX_REDIRECTS} redirects; is base_url the address of its api.php?")

    def _body(self, response: httpx.Response) -> bytes:
        """The body, read in parts, since a server that slowly sends single bytes would never cause a timeout."""
        until = time.monotonic() + 2 * self._timeout_seconds
        body = bytearray()
        for part in response.iter_raw():
            body += part
            if time.monotonic() > until:
                raise _TryAgain(f"no whole answer within {2 * self._timeout_seconds:g} s")
            self._check_size(len(body))
        return self._unpacked(bytes(body), response.headers.get("Content-Encoding", "identity").strip().lower())

    def _unpacked(self, body: bytes, encoding: str) -> bytes:
        """The unpacked body. A limit is needed, because a few kilobytes of gzip can hold gigabytes."""
        if encoding in ("", "identity"):
            return body
        if encoding not in ("gzip", "x-gzip"):
            raise self._failed(f"its answer is packed by {cut(encoding, 40)!r} instead of gzip")
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            unpacked = unpacking.decompress(body, MAX_ANSWER_BYTES + 1)
        except zlib.error as error:
            raise _TryAgain(f"an answer that cannot be unpacked: {error}") from None
        self._check_size(len(unpacked))
        if not unpacking.eof:
            raise _TryAgain("an answer that ends too early")
        return unpacked

    def _check_size(self, size: int) -> None:
        if size > MAX_ANSWER_BYTES:
            raise self._failed(f"an answer of more than {MAX_ANSWER_BYTES:,} bytes")

    def _understood(self, body: bytes, pause: float | None) -> dict[str, Any]:
        try:
            answer = parse_json(body, limit=MAX_ANSWER_BYTES)
        except UnreadableError as unreadable:
            raise self._failed(f"its answer is {unreadable}; is base_url the address of its api.php?") from None
        if not isinstance(answer, dict):
            raise self._failed("its answer is not a JSON object; is base_url the address of its api.php?")
        error = answer.get("error")
        if not isinstance(error, dict):
            return answer
        code = str(error.get("code"))
        if code.startswith(RETRIED_ERRORS):
            raise _TryAgain(f"error {code}", pause)
        raise self._failed(f"error {cut(code)}: {cut(str(error.get('info')))}")

    def _failed(self, why: str) -> EnvironmentFailedError:
        return EnvironmentFailedError(f"wikipedia: {self._base_url}: {why}")


def _seconds_asked_for(header: str | None) -> float | None:
    """The seconds of a ``Retry-After`` header, which may be a date (RFC 9110, 10.2.3); None if it is not readable."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


class _Answers:
    """Answers by request, in SQLite, so that several processes can use the file."""

    def __init__(self, file: str | None) -> None:
        self._name = file or ":memory:"
        self._lock = Lock()
        try:
            if file:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._name, timeout=60.0, check_same_thread=False)
            with self._database:
                self._database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT)")
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"wikipedia: cache: {file} cannot be used: {error}; name another file") from error

    def get(self, request: str) -> dict[str, Any] | None:
        with self._open() as database:
            row = database.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        if row is None:
            return None
        try:
            answer = parse_json(str(row[0]), limit=2 * MAX_ANSWER_BYTES)  # the stored JSON may be longer
        except UnreadableError as error:
            raise self._damaged(str(error)) from None
        if not isinstance(answer, dict):
            raise self._damaged("not a JSON object")
        return answer

    def put(self, request: str, answer: Mapping[str, Any]) -> None:
        with self._open() as database, database:
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (request, json.dumps(answer)))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _damaged(self, why: str) -> EnvironmentFailedError:
        return EnvironmentFailedError(f"wikipedia: cache: {self._name}: an answer in it is {why}; delete the file")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._database
        except sqlite3.Error as error:
            raise EnvironmentFailedError(f"wikipedia: cache: {self._name}: {error}") from error
