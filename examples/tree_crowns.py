"""Train the detector that the package ships, as it was trained: `python examples/tree_crowns.py [WEIGHTS [SEED]]`.

WEIGHTS is the file of torchvision's MobileNetV2, or its name where the machine can download it (the default).
Data: TRAIN of `roialign.samples`; judged by its HELDOUT, which also chose the epoch. Nine minutes on two cores.
The command line does the same: `roialign train --weights WEIGHTS --crop 288 --batch 2 --epochs 5 --repeat 20`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from roialign.detection import load_detector, save_detector
from roialign.detection.commands import evaluate, train
from roialign.detection.recipe import Recipe
from roialign.detection.training import BEST, STEPS

LIMITS = (
    "Trained on 244 tree crowns of two photos from the air, 0.1 m to the pixel: one landscape in Yellowstone, one in "
    "Florida. It is a demonstration, no general detector of trees, and of nothing else. The held-out part chose the "
    "epoch and the recipe, so its AP is slightly optimistic."
)


def main() -> None:
    weights = sys.argv[1] if len(sys.argv) > 1 else "MobileNet_V2_Weights.IMAGENET1K_V1"
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    recipe = Recipe(weights=weights, epochs=5, batch=2, repeat=20, crop=288, seed=seed)
    out, console = Path("build") / f"tree_crowns-{seed}", Console()
    begin = time.perf_counter()
    train(recipe, out, console)
    minutes = round((time.perf_counter() - begin) / 60, 1)
    model = load_detector(out / BEST)
    file = out / "tree_crowns.safetensors"
    save_detector(
        model,
        file,
        half=True,
        data="roialign.samples.TRAIN: OSBS_029 and the upper two thirds of YELL, (c) 2019 Ben Weinstein, MIT",
        command=f"python examples/tree_crowns.py mobilenet_v2-b0353104.pth {seed}",
        settings={name: getattr(recipe, name) for name in ("epochs", *STEPS)},
        minutes=minutes,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        limits=LIMITS,
    )
    evaluate(None, None, out, console, weights=file, json_file=out / "metrics.json")
    console.print(f"wrote {file}, {file.stat().st_size / 1e6:.1f} MB, after {minutes} minutes", soft_wrap=True)


if __name__ == "__main__":
    main()
