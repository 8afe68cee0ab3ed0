"""A made-up run that was evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_evaluation import write_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(
        tmp_path / "made-up", ["retry-sampled", "reflexion", "sft", "ppo-env", "ppo-env-bon4", "oracle"], 30
    )
