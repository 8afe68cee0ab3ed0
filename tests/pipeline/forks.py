"""Python commands, each in a fork of one process that has imported what they need: ten seconds of imports less.

A command is told what an interpreter is told (``-m module …``, ``-c program …``, ``script.py …``). It is a process of
its own: with its arguments, environment, folder and standard streams, with an exit code or the signal that ended it,
and it can be killed. What forks share beyond imports is the seed of hashes; what is unbroken in the tests
(``whole_run``) runs in an interpreter that was started for it, so that one thing is still compared under two seeds.

:func:`run` is ``subprocess.run`` for such a command; :func:`stand_in` is an executable in the place of the interpreter,
for launchers that start processes themselves.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
_STAND_IN = """#!{python} -S
import sys
sys.path.insert(0, {root!r})
from tests.pipeline.forks import stand_in_for
stand_in_for({address!r})
"""


def run(
    arguments: Sequence[str], environment: Mapping[str, str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` in the repository's root: its exit code (negative: the signal that ended it) and output."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as error:
        given.write((stdin or "").encode())
        given.seek(0)
        with _ask(_address(), arguments, environment, ROOT, (given, output, error)) as answer:
            told = answer.makefile().readlines()
        if len(told) != 2:
            raise RuntimeError("the process that forks has ended: what it says is on this process's standard error")
        code = int(told[1])
        for stream in (output, error):
            stream.seek(0)
        return subprocess.CompletedProcess(arguments, code, output.read().decode(), error.read().decode())


def stand_in() -> Path:
    """An executable that runs what it is told in a fork, as an interpreter would."""
    path = Path(_address()).with_name("python")
    path.write_text(_STAND_IN.format(python=sys.executable, root=str(ROOT), address=_address()), encoding="utf-8")
    path.chmod(0o700)
    return path


def stand_in_for(address: str) -> NoReturn:
    """The stand-in's work: what ends it ends the fork (SIGKILL apart), and it ends as the fork does."""
    passed_on = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until there is somebody to pass them on to
    with _ask(address, sys.argv[1:], os.environ, Path.cwd(), (sys.stdin, sys.stdout, sys.stderr)) as answer:
        lines = answer.makefile()
        process = int(next(lines))
        for number in passed_on:
            signal.signal(number, lambda number, _: os.kill(process, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
        code = int(next(lines))
    if code >= 0:
        os._exit(code)
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    raise AssertionError(f"signal {-code} has not ended the process")


@functools.cache
def _address() -> str:
    """The socket of this process's server, which ends with this process."""
    folder = tempfile.mkdtemp(prefix="forks-")
    address = os.path.join(folder, "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)  # who asks before the server has imported everything waits
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.forks", str(listener.fileno())],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return address


def _ask(
    address: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, streams: Sequence[Any]
) -> socket.socket:
    """Ask for a command; two lines come back, its process and, in the end, its exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    asked = {"arguments": [*arguments], "environment": dict(environment), "folder": str(folder)}
    text = json.dumps(asked).encode()
    socket.send_fds(connection, [b"%8d" % len(text)], [stream.fileno() for stream in streams])
    connection.sendall(text)
    return connection


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    asked = _serve(listener)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    _execute(asked["arguments"], asked["folder"])


def _import_everything() -> None:
    """What every command would import: no environment, as some of them need packages that may not be there."""
    import numpy

    import retro
    from retro.cli.logs import quieten

    quieten()  # it must stand before the imports
    for module in pkgutil.walk_packages(retro.__path__, "retro."):
        if not module.name.endswith(".__main__") and not module.name.startswith("retro.envs."):
            importlib.import_module(module.name)
    import matplotlib.pyplot  # noqa: F401
    from accelerate.commands import launch  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer  # noqa: F401
    from trl import DPOTrainer, SFTTrainer  # noqa: F401

    os.register_at_fork(after_in_child=numpy.random.seed)
    gc.collect()
    gc.freeze()


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Until standard input is closed; returns in a fork, with the command that it is to be."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for commands
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return _await_command(connection)
        connection.close()


def _await_command(connection: socket.socket) -> dict[str, Any]:
    """Tell the client what becomes of the command; returns in the command's process."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    asked: dict[str, Any] = json.loads(connection.makefile("rb").read(int(size)))
    child = os.fork()
    if child:
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the server's may have read ahead
    return asked


def _execute(arguments: Sequence[str], folder: str) -> None:
    """As the interpreter does; how this process ends is left to the interpreter, too."""
    import runpy

    sys.executable = os.environ.get("PYTHON_EXEC", sys.executable)  # accelerate starts a single process by this name
    told = [argument for argument in arguments if argument != "-u"]
    if told[0] == "-m":
        sys.argv, sys.path[0] = told[1:], folder
        runpy.run_module(told[1], run_name="__main__", alter_sys=True)
    elif told[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *told[2:]], ""
        exec(told[1], {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = told, os.path.dirname(os.path.join(folder, told[0]))
        runpy.run_path(told[0], run_name="__main__")


if __name__ == "__main__":
    main()
