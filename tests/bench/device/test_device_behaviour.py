"""What holds on a device beside the values: bits, NaN, streams and CUDA graphs; and the climb on top."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import photo, tensor, tiny
from torch import Tensor

from advcam_fast import CamModel, ClimbConfig, compute_maps, ops
from advcam_fast.bench.cases import CASES, Arguments, mapped, outputs
from advcam_fast.bench.plain_loop import PlainMaps, plain_maps

PAIRS, SHRINK = 5, 3  # sides of 125x166 and 8x10
POISONED = {
    "climb_step": "gradient",
    "climb_loss": "logit_map",
    "cam_accumulate": "total",
    "masked_relu": "x",
    "masked_relu_backward": "gradient",
    "max_pool": "x",
    "max_pool_backward": "gradient",
    "random_walk": "maps",
    "color_walk": "maps",
    "centroid_walk": "displacement",
    "dense_crf": "unary",
}
Results = dict[str, Tensor]


@pytest.fixture(params=CASES, ids=lambda case: f"{case.stem}, {case.name}")
def case(request):
    return request.param


def of_pair(tensor: Tensor, pair: int, pairs: int = PAIRS) -> Tensor:
    each = len(tensor) // pairs
    return tensor[pair * each : (pair + 1) * each].clone()


def copied(arguments: Arguments) -> Arguments:
    return mapped(arguments, torch.clone)


def same(a: Results, b: Results) -> None:
    for name, result in a.items():
        assert torch.equal(result, b[name]), name


def test_bits_do_not_depend_on_the_batch(case, run_of, device) -> None:
    pairs, pair = 67, 41
    arguments = case.arguments(pairs, device, shrink=11)
    alone = outputs(case.stem, run_of(case.stem), mapped(arguments, lambda t: of_pair(t, pair, pairs)))
    together = outputs(case.stem, run_of(case.stem), copied(arguments))
    same(alone, {name: of_pair(result, pair, pairs) for name, result in together.items()})


def test_nan_stays_in_its_pair(case, run_of, device) -> None:
    arguments = case.arguments(PAIRS, device, SHRINK)
    clean = outputs(case.stem, run_of(case.stem), copied(arguments))
    first = arguments[POISONED[case.stem]]
    first[3 * len(first) // PAIRS, ..., 1, 2] = float("nan")
    if case.stem == "dense_crf" and device == "cpu":
        with pytest.raises(ValueError, match="a NaN"):
            run_of(case.stem)(**arguments)
        return
    dirty = outputs(case.stem, run_of(case.stem), arguments)
    for name, result in dirty.items():
        for pair in range(PAIRS):
            if pair != 3:
                assert torch.equal(of_pair(result, pair), of_pair(clean[name], pair)), (name, pair)
    assert any(of_pair(result, 3).isnan().any() for result in dirty.values())


def test_no_floating_point_state_is_kept_between_calls(case, run_of, device) -> None:
    arguments = case.arguments(PAIRS, device, SHRINK)
    run = run_of(case.stem)
    same(outputs(case.stem, run, copied(arguments)), outputs(case.stem, run, copied(arguments)))


def test_runs_on_the_current_stream(case, run_of, device) -> None:
    """Its inputs arrive late on a stream of their own: a launch on another stream would read zeros."""
    arguments = case.arguments(PAIRS, device, SHRINK)
    want = outputs(case.stem, run_of(case.stem), copied(arguments))  # also compiles what has to be compiled
    late = mapped(arguments, torch.zeros_like)
    if device == "cuda":
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
    with torch.cuda.stream(stream) if device == "cuda" else nullcontext():
        if device == "cuda":
            torch.cuda._sleep(100_000_000)  # cycles, some 50 ms
        refill(late, arguments)
        got = outputs(case.stem, run_of(case.stem), late)
        if device == "cuda":
            stream.synchronize()
    same(got, want)


def test_graph_replay(case, run_of, device) -> None:
    first, second = case.arguments(PAIRS, device, SHRINK), case.arguments(PAIRS, device, SHRINK)
    second = mapped(second, lambda t: t.flip(-1) if t.is_floating_point() else t)
    run = run_of(case.stem)
    want = outputs(case.stem, run, copied(second))
    static = copied(first)
    got, replay = recorded(lambda: outputs(case.stem, run, static), device)
    for inputs in (first, second):  # twice: what one replay leaves behind must not show in the next
        refill(static, inputs)
        replay()
    same(got, want)


def refill(into: Arguments, source: Arguments) -> None:
    """Copies all tensors; the views in lists stay where they are."""
    sources: list[Tensor] = []
    mapped(source, lambda t: (sources.append(t), t)[1])
    mapped(into, lambda t: t.copy_(sources.pop(0)))


def recorded(run: Callable[[], Results], device: str) -> tuple[Results, Callable[[], object]]:
    """What run() wrote and a way to run it again on the same memory: on a GPU by a CUDA graph."""
    if device != "cuda":
        results: Results = {}
        return results, lambda: results.update(run())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return results, graph.replay


def plain(model: CamModel, pixels: np.ndarray, labels: list[int], config: ClimbConfig) -> PlainMaps:
    """The one-by-one loop in float64 on the CPU."""
    network = copy.deepcopy(model.features).double()
    return plain_maps(network, model.class_weights.double(), pixels, labels, config, model.mean, model.std)


@pytest.mark.parametrize("changes", [{}, {"score": "mean", "other_classes": "present"}], ids=str)
def test_climb_equals_the_plain_loop_of_the_cpu(device, changes) -> None:
    paper = ClimbConfig.preset("voc-cvpr2021")
    config = replace(paper, dtype="fp64", steps=6, steps_at_scale={0.5: 3}, **changes)
    photos, labels = [photo(30, 41), photo(30, 41, 5), photo(13, 9, 6)], [[0, 3], [4, 1], [2]]
    model = tiny()
    wanted = [plain(model, pixels, own, config) for pixels, own in zip(photos, labels, strict=True)]
    results = compute_maps(model.to(device), [tensor(pixels) for pixels in photos], labels, config)
    for result, want in zip(results, wanted, strict=True):
        for name in ("strided", "full", "initial"):
            got, expected = getattr(result, name), getattr(want, name)
            assert got.device.type == device
            assert ((got.cpu() - expected).abs().max() / expected.abs().max()).item() <= 1e-9, name


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_climb_in_less_than_float64_is_sane(device, dtype) -> None:
    config = replace(ClimbConfig.preset("voc-cvpr2021"), dtype=dtype, steps=6, scales=(1.0,), steps_at_scale={})
    model = tiny()
    want = plain(model, photo(48, 64), [1], config)
    result = compute_maps(model.to(device), [tensor(photo(48, 64))], [[1]], config)[0]
    assert result.flags == ()
    limit = 0.1 if dtype == "bf16" else 1e-2 if device == "cuda" else 1e-4  # cuDNN's fp32 convolutions may be TF32
    assert (result.initial.cpu().double() - want.initial).abs().max() <= limit
    assert result.full.isfinite().all()


def test_op_is_registered_for_the_device(device) -> None:
    case = CASES[0]
    inputs = case.arguments(PAIRS, device, SHRINK)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(image: Tensor, gradient: Tensor) -> Tensor:
        return ops.climb_step(image, gradient, 0.08)

    other = inputs["image"].clone()
    assert torch.equal(compiled(inputs["image"], inputs["gradient"]), ops.climb_step(other, inputs["gradient"], 0.08))
    assert torch.equal(other, inputs["image"])
