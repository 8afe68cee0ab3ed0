"""What every stage of a run shares: the value that describes one, whether it is up to date, and how it is run.

A stage is up to date when the values of the config's keys that it declared (with the run's seed) and the digests of its
inputs equal those in its manifest ``stage.json``, and its outputs are still there. An interrupted one with the same
values and inputs resumes; anything else runs anew in a clean folder, the old one being moved to ``replaced/``, never
deleted. Rank 0 alone writes.
"""

from retro.stage.manifest import MANIFEST, Plan, read_manifest
from retro.stage.running import NothingToLearnError, Stage, plan_stage, run_stage
from retro.stage.work import Work

__all__ = ["MANIFEST", "NothingToLearnError", "Plan", "Stage", "Work", "plan_stage", "read_manifest", "run_stage"]
