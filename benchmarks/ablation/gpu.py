"""The ablation at a larger size on a GPU: 9.3 million parameters, scenes of four to eight things, captions nearly twice as long.

    python benchmarks/ablation/gpu.py [--seeds 3] [--only NAME ...]     # the same as run.py --scale gpu
    python benchmarks/ablation/page.py                                  # then, where matplotlib is: figures and tables

Besides torch, transformers, accelerate, scipy and pillow it needs pydantic (wheels: see benchmarks/trainer/gpu.py) and, in the
same way, tensorboardX==2.6.5 and protobuf==7.36.2; no network.
"""

from __future__ import annotations

import sys

import run

if __name__ == "__main__":
    sys.argv[1:1] = ["--scale", "gpu"]
    run.main()
