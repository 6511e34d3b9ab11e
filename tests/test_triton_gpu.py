"""The kernels in Triton, in what only a GPU can show: its rounding, streams, graphs and memory.

``.ci/gpu`` runs it, with the other tests of the kernels, where there is one; ``docs/gpu.md`` says what ran where.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from roialign import backends
from roialign.spec import Pooling
from strategies import lay_out
from triton_calls import placed
from triton_device import DEVICE, STATUS

pytestmark = pytest.mark.skipif(DEVICE != "cuda" or not STATUS.ready, reason=f"needs a GPU; {STATUS.reason}")

SCALES = (0.25, 0.25)
POOLINGS = {
    "fixed": Pooling("avg", (7, 7), SCALES, 2),
    "adaptive": Pooling("avg", (7, 7), SCALES, 0, True),
    "integral": Pooling("integral", (7, 7), SCALES),
    "max": Pooling("max", (7, 7), SCALES, 2),
    "cells": Pooling("cells", (7, 7), SCALES),
    "position-sensitive": Pooling("ps_avg", (7, 7), SCALES, 0, True),
    "rotated": Pooling("rotated", (7, 7), SCALES, 2, True),
    "moved": Pooling("moved", (7, 7), SCALES, 2, True),
    "volume": Pooling("avg", (2, 3, 3), (0.1, *SCALES), 2, True),
    "volume max": Pooling("max", (2, 3, 3), (0.1, *SCALES), 0, True),
    "volume cells": Pooling("cells", (2, 3, 3), (0.1, *SCALES)),
    "signal": Pooling("avg", (7,), SCALES[:1], 2, True),
}
LENGTHS = (16, 50, 84)  # along z, y and x
LAYOUTS = ("contiguous", "channels_last")
each_pooling = pytest.mark.parametrize("name", POOLINGS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True)
def by_triton() -> Iterator[None]:
    with backends.use("triton"):
        yield


def make_call(
    name: str, layout: str, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cuda", boxes: int = 300
) -> tuple[Tensor, Tensor, Tensor]:
    """A map, rois with a bad one among them, and the gradient to what is pooled."""
    generator = torch.Generator().manual_seed(seed)
    spec = POOLINGS[name]
    channels = 40 if spec.group == 1 else 5 * spec.group
    map = torch.randn(2, channels, *LENGTHS[-spec.rank :], generator=generator).to(dtype)
    corner = torch.rand(boxes, 2, generator=generator) * torch.tensor([300.0, 160.0]) - 8
    size = 4 * 40 ** torch.rand(boxes, 2, generator=generator)
    image = torch.randint(2, (boxes, 1), generator=generator)
    rois = torch.cat([image, corner, corner + size], 1)
    rois[5, 0], rois[7, 3] = 2, torch.nan
    rois = placed(rois, spec)
    grad = torch.randn(boxes, channels // spec.group, *spec.output_size, generator=generator).to(dtype)
    return lay_out(map.to(device), layout), rois.to(device), grad.to(device)


def run(spec: Pooling, map: Tensor, rois: Tensor, grad: Tensor) -> list[Tensor]:
    """What is pooled, and the gradients to the map and, where there is one, to the boxes; no NaN is left."""
    leaves = [map.detach().requires_grad_()]
    if spec.kind != "cells":
        leaves.append(rois.detach().requires_grad_())
    pooled = backends.pool(leaves[:1], leaves[-1] if len(leaves) > 1 else rois, None, spec)
    found = [pooled.detach(), *torch.autograd.grad(pooled, leaves, grad)]
    return [each.nan_to_num() for each in found]


def all_equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@each_pooling
@each_layout
def test_bfloat16_to_one_ulp(name: str, layout: str) -> None:
    """Summed in float32 and rounded once: at most the last of the 8 bits differs, or float32's error of the sum."""
    map, rois, _ = make_call(name, layout, dtype=torch.bfloat16, boxes=40)  # the reference takes its time
    of_images = rois.cpu().double()
    of_images[5, 0] = 0
    expected = backends.load("reference").pool([map.cpu().double()], of_images, None, POOLINGS[name])
    expected[5] = torch.nan
    found = backends.pool([map], rois, None, POOLINGS[name])
    assert found.dtype == torch.bfloat16
    bound = 2.0**-7 * expected.abs() + 2e-6 * float(map.abs().max())
    wrong = (found.cpu().double() - expected).abs() > bound
    # In float32 a sample may fall on the other side of a cell's centre, which is no jump, or of the border, which is.
    assert wrong.double().mean() < 1e-3
    assert torch.equal(found.cpu().isnan(), expected.isnan())


@each_pooling
@each_layout
def test_the_same_bits_in_twenty_runs_and_under_load(name: str, layout: str) -> None:
    call = make_call(name, layout)
    expected = run(POOLINGS[name], *call)
    other, noise = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    for _ in range(20):
        with torch.cuda.stream(other):
            noise = (noise @ noise).softmax(1)
        assert all_equal(run(POOLINGS[name], *call), expected)


@each_pooling
def test_deterministic_mode_changes_nothing(name: str) -> None:
    call = make_call(name, "contiguous")
    expected = run(POOLINGS[name], *call)
    torch.use_deterministic_algorithms(True)
    try:
        assert all_equal(run(POOLINGS[name], *call), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@each_pooling
@each_layout
def test_captured_and_replayed(name: str, layout: str) -> None:
    """Forward and backward as one graph, on other boxes and another map than it was captured with."""
    spec, call, other = POOLINGS[name], make_call(name, layout), make_call(name, layout, seed=1)
    expected = run(spec, *other)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(spec, *call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(spec, *call)
    for held, new in zip(call, other, strict=True):
        held.copy_(new)
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize()
        assert all_equal(found, expected)


@each_pooling
def test_several_streams_at_once(name: str) -> None:
    calls = [make_call(name, "contiguous", seed) for seed in range(4)]
    expected = [run(POOLINGS[name], *call) for call in calls]
    streams = [torch.cuda.Stream() for _ in calls]
    torch.cuda.synchronize()
    for _ in range(5):
        found = []
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                found.append(run(POOLINGS[name], *call))
        torch.cuda.synchronize()
        assert all(map(all_equal, found, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_pooling
def test_a_device_that_is_not_the_current_one(name: str) -> None:
    expected = run(POOLINGS[name], *make_call(name, "contiguous"))
    found = run(POOLINGS[name], *make_call(name, "contiguous", device="cuda:1"))
    assert {each.device.index for each in found} == {1}
    assert all_equal([each.to("cuda:0") for each in found], expected)


@each_pooling
@each_layout
def test_nobody_waits(name: str, layout: str) -> None:
    call = make_call(name, layout)
    run(POOLINGS[name], *call)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(POOLINGS[name], *call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["fixed", "adaptive", "integral", "rotated", "moved"])
@each_layout
def test_memory_beside_input_and_output(name: str, layout: str) -> None:
    """At most 5 % of them, on a map and boxes as detectors have them."""
    spec = POOLINGS[name]
    map = lay_out(torch.randn(1, 256, 200, 336, device="cuda"), layout)
    _, rois, _ = make_call(name, layout, boxes=1000)
    rois[:, 0] = 0
    grad = torch.randn(1000, 256, 7, 7, device="cuda")
    shape = list(map.shape)
    calls = (
        lambda: torch.ops.roialign.pool([map], rois, None, *spec),
        lambda: torch.ops.roialign.pool_grad(grad, [], shape, layout == "channels_last", rois, None, *spec)[0],
        lambda: torch.ops.roialign.pool_box_grad(grad, [map], rois, None, *spec),
    )
    for call in calls:
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        beside = torch.cuda.max_memory_allocated() - before - result.nbytes
        assert beside <= 0.05 * (map.nbytes + grad.nbytes)
        del result
