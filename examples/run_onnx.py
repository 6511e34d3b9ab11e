"""Run a detector that `roialign export` wrote, without roialign and without PyTorch: onnxruntime, NumPy and Pillow.

python examples/run_onnx.py model.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def detect(model: str, photo: str, score: float | None = None) -> list[tuple[str, float, list[float]]]:
    """Class, score and box (x1, y1, x2, y2 in pixels) of each detection in a photo, best first."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    told = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    image = np.asarray(Image.open(photo).convert("RGB"), np.float32) / 255
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], {"image": image.transpose(2, 0, 1)})
    least = told.get("score_threshold", 0.5) if score is None else score
    names = told.get("classes", [str(label) for label in range(1, int(labels.max(initial=1)) + 1)])
    each = zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
    return [(names[label - 1], value, box) for label, value, box in each if value >= least]


if __name__ == "__main__":
    for name, value, box in detect(sys.argv[1], sys.argv[2]):
        print(f"{name} {value:.3f}", *[f"{edge:.1f}" for edge in box])
