"""The cache of answers: whole entries only, also from several processes, and never in the way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.actors.response_cache import ResponseCache, request_key
from retro.config import ConfigError
from retro.types import Completion, Usage
from retro.wire.redaction import redacted

ANSWER = Completion('a "text"\nof two lines — ', "length", Usage(3, 4))


def put(cache: ResponseCache, key: str, answer: Completion = ANSWER) -> None:
    asyncio.run(cache.put(key, answer))


def get(cache: ResponseCache, key: str) -> Completion | None:
    return asyncio.run(cache.get(key))


def test_what_was_kept_is_there_equal_also_for_the_next(tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache.sqlite"
    cache = ResponseCache(path)
    assert get(cache, "k") is None
    put(cache, "k")
    put(cache, "k", Completion("another", "stop"))
    assert get(cache, "k") == ANSWER
    other = ResponseCache(path)
    assert get(other, "k") == ANSWER
    put(other, "l")
    assert get(cache, "l") == ANSWER
    cache.close()
    other.close()


def test_many_calls_at_once(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "cache.sqlite")

    async def many() -> list[Completion | None]:
        await asyncio.gather(*(cache.put(str(n), Completion(str(n), "stop")) for n in range(200)))
        return await asyncio.gather(*(cache.get(str(n)) for n in range(201)))

    *kept, missing = asyncio.run(many())
    assert [answer and answer.text for answer in kept] == [str(n) for n in range(200)]
    assert missing is None


def test_several_may_make_the_file_at_once(tmp_path: Path) -> None:
    together = Barrier(4)

    def make(name: str) -> Completion | None:
        together.wait()
        cache = ResponseCache(tmp_path / name)
        put(cache, "k")
        kept = get(cache, "k")
        cache.close()
        return kept

    with ThreadPoolExecutor(4) as threads:
        names = [f"{number // 4}.sqlite" for number in range(40)]
        assert list(threads.map(make, names)) == [ANSWER] * 40


def test_a_killed_process_leaves_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    writes = (
        "import asyncio, itertools, sys\n"
        "from retro.actors.response_cache import ResponseCache\n"
        "from retro.types import Completion\n"
        "cache = ResponseCache(sys.argv[1])\n"
        "for n in itertools.count():\n"
        "    asyncio.run(cache.put(str(n), Completion(str(n) * 1000, 'stop')))\n"
        "    print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", writes, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 50:
            pass
        os.kill(writer.pid, signal.SIGKILL)
        told = 50 + len(writer.stdout.read().splitlines())
    cache = ResponseCache(path)
    for n in range(told):  # the last line may be half a number
        assert get(cache, str(n)) == Completion(str(n) * 1000, "stop")
    cache.close()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database at all, but long enough to be read as one " * 20)
    with pytest.raises(ConfigError, match=r"actor\.cache .*notes\.txt"):
        ResponseCache(file)
    with pytest.raises(ConfigError, match=r"actor\.cache"):
        ResponseCache(tmp_path)
    with pytest.raises(ConfigError, match=r"actor\.cache"):
        ResponseCache(file / "below")
    assert file.read_text().startswith("not a database")


def test_another_writer_is_waited_for_while_the_loop_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = ResponseCache(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def write_and_go_on() -> None:
        writing = asyncio.create_task(cache.put("k", ANSWER))
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not writing.done()
        other.execute("COMMIT")
        await writing

    asyncio.run(write_and_go_on())
    assert get(cache, "k") == ANSWER
    other.close()
    cache.close()


BODIES = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4)


@given(BODIES, BODIES)
def test_requests_are_one_exactly_if_they_say_the_same(one: dict[str, object], other: dict[str, object]) -> None:
    assert (request_key("http://x/v1", one) == request_key("http://x/v1", other)) == (one == other)
    assert request_key("http://x/v1", one) == request_key("http://x/v1", dict(reversed(one.items())))
    assert request_key("http://y/v1", one) != request_key("http://x/v1", one)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not JSON"),
        ("[" * 20_000, "nested deeper"),
        ('{"text": "a", "finish_reason": "never", "usage": {}}', "finish_reason: Input should be"),
        ('{"text": "a", "finish_reason": "stop", "usage": {"prompt_tokens": 9223372036854775808}}', "beyond 64 bits"),
        ('{"text": "a", "finish_reason": "stop", "usage": {"prompt_tokens": 9223372036854775807}}', "two numbers"),
        ('{"text": "a", "finish_reason": "stop", "usage": {"prompt_tokens": -1}}', r"usage\.prompt_tokens: Input"),
        (b"\xff\x00", "not text"),
    ],
)
def test_a_damaged_row_is_one_clear_line(tmp_path: Path, row: str | bytes, words: str) -> None:
    path = tmp_path / "cache.sqlite"
    cache = ResponseCache(path)
    with sqlite3.connect(path) as other:
        other.execute("INSERT INTO completions VALUES ('k', ?)", (row,))
    other.close()
    with pytest.raises(ConfigError, match=rf"cache\.sqlite: damaged .*{words}.*delete the file") as caught:
        get(cache, "k")
    assert "\n" not in str(caught.value)
    cache.close()


def test_a_table_of_something_else_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE completions (question TEXT)")
    other.close()
    cache = ResponseCache(path)
    with pytest.raises(ConfigError, match=r"actor\.cache .*no such column"):
        get(cache, "k")
    with pytest.raises(ConfigError, match=r"actor\.cache .*columns"):
        put(cache, "k")
    cache.close()


def test_a_key_that_an_older_version_kept_does_not_come_back(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    cache = ResponseCache(path)
    put(cache, "k", Completion("you sent sk-an-old-secret", "stop"))
    redacted.hide("sk-an-old-secret")
    assert get(cache, "k") == Completion("you sent ***", "stop")
    cache.close()
