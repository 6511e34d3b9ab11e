"""A tile through the shipped detector, with torchvision's pooler, with ours, with its norms folded, and with its
backbone in bfloat16: ``python -m benchmarks.detecting``.

The same weights and pixels. All take turns; the median counts, and the least, where other work disturbs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from roialign.detection import load_detector
from roialign.detection.folding import fold_norms
from roialign.detection.images import Photo
from roialign.detection.model import memory_format
from roialign.detection.precision import lower
from roialign.samples import HELDOUT

TILE = 416  # pixels


def detectors() -> dict[str, FasterRCNN]:
    """One of each; torchvision's first."""
    plain = load_detector()
    ours, folded = copy.deepcopy(plain), copy.deepcopy(plain)
    pooler = plain.roi_heads.box_roi_pool
    plain.roi_heads.box_roi_pool = MultiScaleRoIAlign(
        pooler.featmap_names, pooler.output_size, pooler.sampling_ratio, canonical_scale=pooler.canonical_scale
    )
    fold_norms(folded)
    low = copy.deepcopy(folded)
    lower(low, "bfloat16")
    layout = memory_format(torch.device("cpu"))
    return {
        "torchvision's pooler": plain,
        "ours, channels_last": ours.to(memory_format=layout),
        "ours, norms folded": folded.to(memory_format=layout),
        "and in bfloat16": low.to(memory_format=layout),
    }


@torch.no_grad()
def main() -> None:
    """Print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    models = detectors()
    pixels = Photo(HELDOUT.parent / "YELL_lower.jpg").read()[:, :TILE, :TILE]
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            begin = time.perf_counter()
            model([pixels])
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - begin)
    peer = next(iter(times.values()))
    for name, each in times.items():
        print(
            f"{name:22} median {statistics.median(each):.3f} s, least {min(each):.3f} s: "
            f"{statistics.median(peer) / statistics.median(each):.2f} and {min(peer) / min(each):.2f} times as fast"
        )


if __name__ == "__main__":
    main()
