"""``docs/tutorial.ipynb``: its cells run in order, with less to play and to train than on the page."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.pipeline.running import BIN, ROOT, on_path

SMALLER = (
    "environment.tasks.train=8 environment.tasks.validation=2 environment.tasks.test=3 collect.group=2 "
    "sft.threshold=-1 sft.epochs=1 reward.max_steps=2 reward.eval_every=2 ppo.steps=1 ppo.contexts=2 ppo.group=2 "
    "ppo.epochs=1 ppo.validate_every=1 ppo.validation_contexts=2 evaluate.arms=[retry-sampled,ppo-env]"
)


def program(cells: list[str]) -> str:
    """The cells as one program: ``!COMMAND`` runs the command in a shell, in which ``{name}`` is a variable's value."""
    lines = ["import subprocess"]
    for cell in cells:
        command = cell.removeprefix("!")
        lines.append(cell if command == cell else f'subprocess.run(f"{command}", shell=True, check=True)')
        if cell.startswith("size = "):
            lines.append(f'size += " {SMALLER}"')
    return "\n".join(lines)


def test_the_tutorials_cells_run_in_order(tmp_path: Path, tools: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([cell["outputs"] for cell in cells])
    assert not re.search(r"/(home|root|tmp|Users)/", outputs), "an output names a folder of the machine that made it"

    script = tmp_path / "tutorial.py"
    script.write_text(program(["".join(cell["source"]) for cell in cells]), encoding="utf-8")
    done = subprocess.run(
        ["python", script.name], cwd=tmp_path, env=on_path(tools, BIN), capture_output=True, text=True, check=False
    )
    logs = "".join(log.read_text(encoding="utf-8")[-2000:] for log in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    assert "\nkept: " in done.stdout and "\nppo-env " in done.stdout
    assert (tmp_path / "runs" / "tutorial" / "evaluation" / "report.html").is_file()
