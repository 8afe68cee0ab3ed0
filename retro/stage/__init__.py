"""What all stages of a run share: the value that describes a stage, its manifest, and the function that runs it.

A stage is up to date when the values of the keys that it declared (and the run's seed) and the digests of its inputs
equal those in its manifest ``stage.json``, and its outputs are still there. An interrupted stage with the same values
and inputs resumes. Any other runs anew in a clean folder; the old folder is moved to ``replaced/``, never deleted. Only
rank 0 writes.
"""

from retro.stage.manifest import MANIFEST, Plan, read_manifest
from retro.stage.running import NothingToLearnError, Stage, plan_stage, run_stage
from retro.stage.work import Work, with_interval

__all__ = [
    "MANIFEST",
    "NothingToLearnError",
    "Plan",
    "Stage",
    "Work",
    "plan_stage",
    "read_manifest",
    "run_stage",
    "with_interval",
]
