"""Every kernel once on small odd inputs: what compute-sanitizer runs. `python sanitizer_case.py DEVICE`

Inputs come from the CPU and results are looked at there, so that hardly any kernel but ours runs.
"""

from __future__ import annotations

import sys

import torch

from advcam_fast import ops
from advcam_fast.bench.agreement import check
from advcam_fast.bench.cases import CASES, mapped
from advcam_fast.ops.backend import backend_of


def main() -> None:
    device = sys.argv[1]
    for case in CASES:
        for channels_last in (False, True):
            arguments = case.arguments(pairs=2, shrink=7, channels_last=channels_last)  # sides of 53, 71, 3, 4
            check(case.stem, getattr(ops, case.stem), mapped(arguments, lambda tensor: tensor.to(device)))
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{len(CASES)} cases, kernels: {backend_of(device)}")


if __name__ == "__main__":
    main()
