"""Does RoIAlign do better than RoIPool? The same detector with each pooling, several seeds each.

    python examples/pooling_study.py --weights mobilenet_v2-b0353104.pth
    python examples/pooling_study.py --only roi_pool --seeds 5    # one part; runs that --out has are not run again

Every detector is Faster R-CNN on one map, MobileNetV2's last of stride 16, and sees the photos as they are: a crown is
then about 2.3 cells wide, as coarse as a 74-pixel object on a map of stride 32. Each is trained on the package's tree
crowns for the same steps, on the same crops in the same order, and judged by the held-out photos. Nothing is chosen by
the held-out photos: the model of the last step counts. A run took about five minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from roialign.detection import POOLINGS, build_detector, detect
from roialign.detection.datasets import AnnotatedImages, open_photo
from roialign.detection.evaluation import Report, evaluate_found
from roialign.detection.recipe import Recipe
from roialign.detection.training import Trainer
from roialign.samples import HELDOUT, TRAIN

LAYERS, CHANNELS, HEAD_CHANNELS = 14, 96, 256  # of MobileNetV2 up to stride 16, and of the box head
METRICS = ("AP", "AP50", "AP75")

# He et al., "Mask R-CNN", https://arxiv.org/abs/1703.06870, table 2d: box AP on COCO, ResNet-50-C5, stride 32.
PAPER = {"RoIPool": (0.282, 0.527, 0.269), "RoIAlign": (0.340, 0.553, 0.364)}

OPTIONS: dict[str, Any] = {
    "box_detections_per_img": 300,
    "box_batch_size_per_image": 256,
    "rpn_post_nms_top_n_train": 1000,
    "box_score_thresh": 0.02,
}


class Quiet:
    """Nobody looks on."""

    def step(self, epoch: int, steps: int, losses: dict[str, float], images: int) -> None:
        """Nothing."""

    def skipped(self, fault: str) -> None:
        """Nothing."""

    def epoch(self, history: list[dict[str, float]], report: Report | None) -> None:
        """Nothing."""


def run(pooling: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and judge one detector."""
    data, held = AnnotatedImages(TRAIN), AnnotatedImages(HELDOUT)
    torch.manual_seed(seed)
    model = build_detector(
        2,
        "mobilenet_v2",
        pooling,
        weights=options.weights,
        anchors="auto",
        boxes=data.boxes,
        scale=options.scale,
        head_channels=HEAD_CHANNELS,
        **OPTIONS,
    )
    model.backbone = model.backbone[:LAYERS]
    model.rpn.head = RPNHead(CHANNELS, model.rpn.anchor_generator.num_anchors_per_location()[0])
    model.roi_heads.box_head = TwoMLPHead(CHANNELS * 7 * 7, HEAD_CHANNELS)
    recipe = Recipe(
        epochs=1,  # which goes over the photos so many times: nothing to save in between
        repeat=options.epochs,
        batch=options.batch,
        augment="aerial",
        crop=options.crop,
        lr=options.lr,
        seed=seed,
        workers=options.workers,
    )
    begin = time.perf_counter()
    trainer = Trainer(model, data, None, recipe, folder)
    steps = len(trainer.batches)
    history = trainer.run(Quiet())
    seconds = time.perf_counter() - begin
    found = detect(trainer.average, (open_photo(e.file, e.width, e.height) for e in held.entries), overlap=96)
    report = evaluate_found(held, {entry.id: each for entry, each in zip(held.entries, found, strict=True)})
    metrics = {name: report.metrics[name] for name in METRICS}
    how = {"epochs": options.epochs, "batch": options.batch, "crop": options.crop, "scale": options.scale}
    losses = {name: value for name, value in history[-1].items() if name.startswith("loss_")}
    return {"pooling": pooling, "seed": seed, "steps": steps, "seconds": seconds, **metrics, **losses, **how}


def table(results: list[dict[str, Any]]) -> Table:
    """Mean and standard deviation over the seeds, and the paper's rows."""
    rows = Table(title="Held-out tree crowns; below, the paper on COCO", title_justify="left")
    for heading in ("pooling", "seeds", *METRICS, "seconds a run"):
        rows.add_column(heading)
    for pooling in POOLINGS:
        mine = [result for result in results if result["pooling"] == pooling]
        if mine:
            values = [[result[name] for result in mine] for name in METRICS]
            cells = [f"{statistics.fmean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in values]
            seconds = statistics.fmean(result["seconds"] for result in mine)
            rows.add_row(pooling, str(len(mine)), *cells, f"{seconds:.0f}")
    rows.add_section()
    for name, numbers in PAPER.items():
        rows.add_row(f"{name}, Mask R-CNN table 2d", "", *(f"{number:.3f}" for number in numbers), "")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="MobileNet_V2_Weights.IMAGENET1K_V1", help="of the backbone")
    parser.add_argument("--only", choices=POOLINGS, help="one pooling")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=120, help="times over the photos, 20 crops each")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=224, help="pixels of the image")
    parser.add_argument("--scale", type=float, default=1.0, help="pixels that the network sees per pixel of the image")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/pooling_study"))
    options = parser.parse_args()
    console = Console()
    for seed in range(options.seeds):
        for pooling in POOLINGS if options.only is None else (options.only,):
            folder = options.out / f"{pooling}-{seed}"
            if not (folder / "result.json").exists():
                result = run(pooling, seed, options, folder)
                for state in folder.glob("*.safetensors"):
                    state.unlink()  # some hundred megabytes that nobody needs
                (folder / "result.json").write_text(json.dumps(result, indent=1))
                console.print(pooling, seed, {name: round(result[name], 3) for name in METRICS})
    results = [json.loads(file.read_text()) for file in sorted(options.out.glob("*/result.json"))]
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    console.print(table(results))


if __name__ == "__main__":
    main()
