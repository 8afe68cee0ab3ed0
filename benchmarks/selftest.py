"""How far a base's log-probabilities differ from way to way, in each dtype, and how long its self-test takes.

python benchmarks/selftest.py BASE [--device cuda] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import logging
import os
from tempfile import TemporaryDirectory

from retro.config import ModelSection
from retro.models import exactness
from retro.models.adapters import SharedBase
from retro.models.backbone import UnsupportedModelError

DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder or a hub name")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=DTYPES, help="this one alone")
    parser.add_argument("--quantization", choices=("none", "nf4"), default="none")
    asked = parser.parse_args()
    logging.basicConfig(format="  %(message)s")
    logging.getLogger(exactness.__name__).setLevel(logging.DEBUG)
    for dtype in [asked.dtype] if asked.dtype else DTYPES:
        print(dtype, flush=True)
        with TemporaryDirectory() as folder:
            os.environ[exactness.CACHE] = folder  # an outcome of before would leave nothing to measure
            section = ModelSection(base=asked.base, dtype=dtype, quantization=asked.quantization)
            try:
                SharedBase.load(section, asked.device)
            except UnsupportedModelError as error:
                print(f"  refused: {error}")


if __name__ == "__main__":
    main()
