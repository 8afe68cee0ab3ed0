"""The stage contract (:mod:`retro.stage`), under the name that the training stages use.

It stands above the folders because ``agent`` (export) and ``evaluation`` keep the same contract, and neither may
import ``training``.
"""

from retro.artifacts import digest_model, digest_path, write_atomically, write_json
from retro.stage import Plan, Stage, config_part, open_stage, open_trackers, plan_stage, read_manifest, stage_folder

__all__ = [
    "Plan",
    "Stage",
    "config_part",
    "digest_model",
    "digest_path",
    "open_stage",
    "open_trackers",
    "plan_stage",
    "read_manifest",
    "stage_folder",
    "write_atomically",
    "write_json",
]
