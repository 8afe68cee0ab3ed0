"""How far a base's log-probabilities differ from way to way, in each dtype, and how long its self-test takes; then the
sampler's gap on 8 answers of up to 32 tokens to one failed trajectory, in nats a token.

python benchmarks/selftest.py BASE [--device cuda] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from tempfile import TemporaryDirectory

import torch

from retro.config import ModelSection
from retro.models import exactness, outcomes
from retro.models.adapters import SharedBase
from retro.models.backbone import UnsupportedModelError
from retro.models.generation import Engine
from retro.models.packing import pack, response_outputs
from retro.models.text import encode_prompt
from retro.types import Sampling

DTYPES = ("float32", "bfloat16", "float16")
ANSWERS = 8
FAILED = """You are in a room with a cabinet 1, a desk 1, a drawer 1 and a shelf 1.
Your task: put a clean mug in the cabinet.
> go to desk 1
On the desk 1 you see a mug 1 and a pencil 2.
> take mug 1 from desk 1
You pick up the mug 1.
> put mug 1 in cabinet 1
You put the mug 1 in the cabinet 1. The task is not done.

The attempt failed. Why did it fail, and what should be done differently in the next attempt?"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder or a hub name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=DTYPES, help="this one alone")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    asked = parser.parse_args()
    logging.basicConfig(format="  %(message)s", stream=sys.stdout)
    logging.getLogger(exactness.__name__).setLevel(logging.DEBUG)
    for dtype in [asked.dtype] if asked.dtype else DTYPES:
        print(dtype, flush=True)
        with TemporaryDirectory() as folder:
            os.environ[outcomes.CACHE] = folder  # an outcome of before would leave nothing to measure
            section = ModelSection(base=asked.base, dtype=dtype, quantization=asked.quantization)
            try:
                base = SharedBase.load(section, asked.device)
            except UnsupportedModelError as error:
                print(f"  refused: {error}")
                continue
        print(f"  the sampler's gap: {sampler_gap(base):.2g} nats a token", flush=True)


@torch.no_grad()
def sampler_gap(base: SharedBase) -> float:
    """Mean distance of the sampler's log-probabilities from those of the training pass, over all tokens."""
    prompt = encode_prompt(base.tokenizer, FAILED)
    seeds = [list(range(ANSWERS))]
    [answers] = Engine(base.model, base.tokenizer).sample([prompt], ANSWERS, Sampling(1.0, max_tokens=32), seeds)
    outputs = response_outputs(base.model, pack([prompt], [[answer.ids for answer in answers]]))
    drawn = torch.tensor([number for answer in answers for number in answer.log_probs])
    return float((outputs.log_probs[outputs.mask].cpu() - drawn).abs().mean())


if __name__ == "__main__":
    main()
