"""Rotary position embeddings that reach further than a base's own, and the same for every row of a batch."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from retro.config import ConfigError

logger = logging.getLogger(__name__)


def scale_rotary(config: PreTrainedConfig, name: str, scaling: dict[str, Any]) -> None:
    """Put ``model.rope_scaling`` into a configuration.

    A linear scaling by f lengthens ``max_position_embeddings`` by f, which neither a base's own file nor transformers
    does. A dynamic one does not, because beyond the base's own length its frequencies follow the longest row of a
    batch, and what a row computes would depend on its neighbours.

    Raises:
        ConfigError: if the model has no single set of rotary parameters, or does not take this scaling.
    """
    rotary = getattr(config, "rope_parameters", None)
    if not isinstance(rotary, dict) or "rope_theta" not in rotary:
        raise ConfigError(f"model {name!r} has no single set of rotary parameters: leave model.rope_scaling out")
    kind = scaling.get("rope_type", rotary.get("rope_type"))
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        raise ConfigError(
            f"model.rope_scaling: rope_type {kind!r} is unknown; there are: {', '.join(ROPE_INIT_FUNCTIONS)}"
        )
    config.rope_parameters = {**rotary, **scaling}
    try:
        config.validate_rope()
    except (KeyError, ValueError) as error:
        raise ConfigError(f"model.rope_scaling {scaling}: {error}") from error
    if kind == "linear":
        already = float(rotary["factor"]) if rotary.get("rope_type") == "linear" else 1.0
        longer = float(config.rope_parameters["factor"]) / already
        config.max_position_embeddings = int(config.max_position_embeddings * longer)


def fix_longrope(config: PreTrainedConfig, name: str, needed: int | None) -> None:
    """Choose one set of a longrope model's rotary frequencies for the whole run, as vLLM does by ``max_model_len``.

    Such a model (Phi-3 128k) has one set for sequences up to its original length and one for longer sequences, and
    transformers uses the set for the longest sequence of a pass. So what a sequence computes would depend on its
    neighbours, and change in the middle of an answer.

    Args:
        needed: tokens of the longest sequence of the run; None if that is not known. If it fits the original length,
            the short set is used and the context ends there, else the long set.
    """
    text = config.get_text_config()
    rotary = getattr(text, "rope_parameters", None)
    if not isinstance(rotary, dict) or rotary.get("rope_type") != "longrope":
        return
    original = int(rotary["original_max_position_embeddings"])
    kept = "short_factor" if needed is not None and needed <= original else "long_factor"
    factor = rotary.get("factor") or text.max_position_embeddings / original  # from the context, which changes below
    text.rope_parameters = {**rotary, "factor": factor, "short_factor": rotary[kept], "long_factor": rotary[kept]}
    if kept == "short_factor":
        text.max_position_embeddings = original
    logger.info(
        "%s has two sets of rotary frequencies (longrope); this run uses its %s for all sequences, up to %d tokens",
        name,
        kept,
        text.max_position_embeddings,
    )
