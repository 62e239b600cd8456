"""What benchmarks/gpu.py times, each part in a process of its own: `python gpu_timings.py kernels|climb OUT DEVICE`.

Every row is written as soon as it is there, so that a part that is stopped leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from device_clock import bandwidth, call_seconds, kernel_seconds, rounds_within

from advcam_fast import CamModel, ClimbConfig, compute_maps, ops
from advcam_fast.bench.agreement import check
from advcam_fast.bench.cases import CASES, Arguments, Case, minimum_bytes, outputs
from advcam_fast.bench.networks import best_class, plain_peer, random_model
from advcam_fast.bench.plain_loop import plain_step
from advcam_fast.climb.climber import Climber
from advcam_fast.ops.backend import backend_of, has_triton

Row = dict[str, Any]
STEPS = 4
KERNEL_SECONDS = 0.25  # of each of a row's two timings: a peer that takes a tenth of a second is not called 100 times
COMPILED_PAIRS = 16  # torch.compile takes seconds a case: at one batch size only
PEERS = ("eager", "compiled", "plain")  # what ours is compared with: that one of them fails is no fault of ours


def implementations(case: Case, device: str, compiled: bool) -> dict[str, Callable[[Arguments], Callable[..., Any]]]:
    """By name, ours first, then its peers: what runs on the arguments that it is made for."""
    found = {backend_of(device): lambda _: getattr(ops, case.stem), "eager": case.eager}
    if device == "cuda" and backend_of(device) == "native" and has_triton():
        from advcam_fast.ops import triton

        if hasattr(triton, case.stem):
            found["triton"] = lambda _: getattr(triton, case.stem)
    if compiled and case.compiles:
        torch.compiler.reset()
        found["compiled"] = lambda arguments: torch.compile(case.eager(arguments), dynamic=False)
    return found


def guarded_row(row: Row, measure: Callable[[], Row], device: str) -> Row:
    """The row with what was measured and the memory it took, or with the error in its place."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        row |= measure()
    except torch.OutOfMemoryError as error:
        return row | {"out_of_memory": str(error).splitlines()[0]}
    except Exception:  # a failed launch, a failed compile, a wrong result: recorded, and on to the next
        return row | {"error": traceback.format_exc(limit=-3)}
    return row if device == "cpu" else row | {"peak_bytes": torch.cuda.max_memory_allocated()}


def kernel_rows(device: str, quick: bool) -> Iterator[Row]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    speed, shrink = bandwidth(name), 16 if quick else 1
    for case in CASES:
        for pairs in (COMPILED_PAIRS,) if quick else (1, COMPILED_PAIRS, 64):
            compiled = pairs == COMPILED_PAIRS and (case is CASES[0] or not quick)
            for implementation, make_run in implementations(case, device, compiled).items():
                row = {"stem": case.stem, "case": case.name, "pairs": pairs, "implementation": implementation}
                # the engine's layout for ours, the one that the reference is faster with for its peers
                layout = {"device": device, "shrink": shrink, "channels_last": implementation not in PEERS}

                # a second shape would be a second compilation
                checked = pairs if implementation == "compiled" else 2

                def measure(
                    case: Case = case,
                    make_run: Callable[[Arguments], Callable[..., Any]] = make_run,
                    pairs: int = pairs,
                    checked: int = checked,
                    limit: float | None = case.peer_error if implementation in PEERS else None,
                    layout: Row = layout,
                ) -> Row:
                    arguments = case.arguments(checked, **layout)
                    run = make_run(arguments)
                    check(case.stem, run, arguments, limit=limit)
                    if checked != pairs:
                        arguments = case.arguments(pairs, **layout)
                        run = make_run(arguments)
                    return time_kernel(case.stem, run, arguments, device, speed)

                yield guarded_row(row, measure, device)


def time_kernel(stem: str, run: Callable[..., Any], arguments: Arguments, device: str, speed: float | None) -> Row:
    moved = minimum_bytes(arguments, outputs(stem, run, arguments))
    run(**arguments)
    once = call_seconds(lambda: run(**arguments), device, 1)
    seconds = kernel_seconds(lambda: run(**arguments), device, rounds_within(KERNEL_SECONDS, once, 30))
    calls = rounds_within(KERNEL_SECONDS, 3 * once, 20)
    back_to_back = call_seconds(lambda: [run(**arguments) for _ in range(calls)], device, 3) / calls
    row: Row = {"seconds": seconds, "call_seconds": back_to_back, "bytes": moved}
    if speed is not None:
        row |= {"bound_seconds": moved / speed, "share_of_bound": moved / speed / seconds}
    return row


def climb_rows(device: str, quick: bool) -> Iterator[Row]:
    """ResNet-50 stride 16, seconds per step of one flip pair at 375x500, and whole images of the paper's preset."""
    shrink = 16 if quick else 1
    height, width = 375 // shrink, 500 // shrink
    paper = ClimbConfig.preset("voc-cvpr2021")
    model = random_model("resnet18" if quick else "resnet50_stride16").to(device)
    generator = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (64, 3, height, width), dtype=torch.uint8, generator=generator).to(device)
    label = best_class(model, views[:1])

    row = {"implementation": "plain", "dtype": "fp32", "pairs": 1}
    yield guarded_row(row, lambda: time_plain(model, views[:1], label, device), device)
    for dtype in ("fp32", "bf16"):
        climber = Climber(model, replace(paper, dtype=dtype))
        for pairs in (2,) if quick else (1, 4, 16, 64):
            row = {"implementation": "climber", "dtype": dtype, "pairs": pairs}
            yield guarded_row(row, lambda c=climber, p=pairs: time_climb(c, views[:p], label, device), device)
    pairs = 2 if quick else 16
    launched = Climber(model, replace(paper, dtype="bf16"))
    launched.replay.wanted = False
    row = {"implementation": "climber, no graphs", "dtype": "bf16", "pairs": pairs}
    yield guarded_row(row, lambda: time_climb(launched, views[:pairs], label, device), device)
    ragged = Climber(model, replace(paper, dtype="bf16"), ragged=True)
    mixed = [view[:, : height - index % 7, : width - 2 * (index % 5)] for index, view in enumerate(views[:pairs])]
    row = {"implementation": "climber, sizes mixed", "dtype": "bf16", "pairs": pairs}
    yield guarded_row(row, lambda: time_climb(ragged, mixed, label, device), device)
    for dtype in ("bf16", "fp32"):
        config = replace(paper, dtype=dtype, **({"steps": 2, "steps_at_scale": {}} if quick else {}))
        images = list(views[: 2 if quick else 8])
        row = {"implementation": "compute_maps", "dtype": dtype, "images": len(images)}
        yield guarded_row(row, lambda c=config, i=images: time_images(model, i, label, c, device), device)


def time_plain(model: CamModel, view: torch.Tensor, label: int, device: str) -> Row:
    config = ClimbConfig.preset("voc-cvpr2021")
    network, pair = plain_peer(model, view)
    start = plain_step(network, model.class_weights, pair, [label], None, config).pair_map

    def step() -> None:
        plain_step(network, model.class_weights, pair, [label], start, config)

    step()
    return {"seconds_per_step": call_seconds(step, device)}


def time_climb(climber: Climber, views: torch.Tensor | list[torch.Tensor], label: int, device: str) -> Row:
    pairs = len(views)
    labels = torch.full((pairs, 1), label, device=device)
    result = climber.climb(views, labels, STEPS + 1, pairs)
    assert bool(result.total.isfinite().all()), "the maps are not finite"
    assert not climber.replay.problem, climber.replay.problem
    # STEPS + 1 maps are STEPS whole steps and one forward pass more, which is taken off.
    forward = call_seconds(lambda: climber.climb(views, labels, 1, pairs), device, 3)
    whole = call_seconds(lambda: climber.climb(views, labels, STEPS + 1, pairs), device, 3)
    return {"seconds_per_step": (whole - forward) / STEPS / pairs}


def time_images(model: CamModel, images: list[torch.Tensor], label: int, config: ClimbConfig, device: str) -> Row:
    labels = [[label] for _ in images]
    short = replace(config, steps=2, steps_at_scale={})
    compute_maps(model, images, labels, short)  # warms the convolutions of every size up
    seconds = call_seconds(lambda: compute_maps(model, images, labels, config), device, 1)
    return {"images_per_second": len(images) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["kernels", "climb"])
    parser.add_argument("out", type=Path)
    parser.add_argument("device", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rows: list[Row] = []
    for row in {"kernels": kernel_rows, "climb": climb_rows}[options.part](options.device, options.quick):
        rows.append(row)
        print(json.dumps(row), flush=True)
        scratch = options.out.with_suffix(".new")  # renamed when whole: this process may be stopped at any time
        scratch.write_text(json.dumps(rows))
        scratch.replace(options.out)
    if any("error" in row and row["implementation"] not in PEERS for row in rows):
        raise SystemExit("some of our kernels or climbs failed")


if __name__ == "__main__":
    main()
