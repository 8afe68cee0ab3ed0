"""A command in a fork is a process like one that an interpreter was started for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.pipeline import forks
from tests.pipeline.running import ROOT, environment, started

TELLS = """
import json, os, sys
print("beside", file=sys.stderr)
print(json.dumps([sys.argv, sys.path[0], os.getcwd(), sys.stdin.read(), os.environ.get("WORD"), __name__]))
sys.exit(len(sys.argv))
"""
ENDS = {
    "falls off its end": "",
    "exits with a message": "raise SystemExit('no')",
    "raises": "1 / 0",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "is ended": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
}


def test_it_is_told_what_an_interpreter_is_told(tmp_path: Path) -> None:
    script = tmp_path / "tells.py"
    script.write_text(TELLS, encoding="utf-8")
    done = forks.run([str(script), "one", "two words"], environment(WORD="yes"), "given")
    argv = [str(script), "one", "two words"]
    assert json.loads(done.stdout) == [argv, str(tmp_path), str(ROOT), "given", "yes", "__main__"]
    assert (done.returncode, done.stderr) == (3, "beside\n")
    assert json.loads(forks.run([str(script)], environment()).stdout)[3:5] == ["", None]
    assert forks.run(["-c", "import sys; print(sys.argv)", "one"], environment()).stdout == "['-c', 'one']\n"


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_an_interpreter_ends(end: str, tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text(ENDS[end], encoding="utf-8")
    done, other = forks.run([str(script)], environment()), started(str(script))
    assert done.returncode == other.returncode
    assert done.stderr.splitlines()[-1:] == other.stderr.splitlines()[-1:]


def test_a_stand_in_ends_with_its_fork_and_the_fork_with_it(tmp_path: Path) -> None:
    script = tmp_path / "waits.py"
    script.write_text("import os, sys; print(os.getpid(), flush=True); sys.stdin.read(); os.abort()", encoding="utf-8")
    for end, code in (("its input", -signal.SIGABRT), ("a signal", -signal.SIGTERM)):
        command = [str(forks.stand_in()), "-u", str(script)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout is not None
            fork = int(process.stdout.readline())
            assert fork != process.pid
            if end == "a signal":
                process.terminate()
                process.wait()
            process.communicate()
        assert process.returncode == code
        with pytest.raises(ProcessLookupError):
            os.kill(fork, 0)
