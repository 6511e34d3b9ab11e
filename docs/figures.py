"""Makes the figures of the documentation while it is built; run as a program, it makes the README's picture."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import roialign
from roialign.data import load_photo
from roialign.explain import Explanation
from roialign.explain.figures import save
from roialign.explain.page import make_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PICTURE = Path(__file__).parent / "images" / "explain.png"


def example(mode: str = "avg") -> Explanation:
    """The box of the README's picture: pixels of an image, on a map of stride 16."""
    return roialign.explain((8, 8), (21.0, 37.0, 98.0, 102.0), 2, 1 / 16, 2, True, mode=mode)


def worked() -> Explanation:
    """The classic drawing's region, 7 x 5 cells in 2 x 2 bins of 4 samples, by the maximum."""
    return roialign.explain((8, 8), (0, 3, 7, 8), 2, sampling_ratio=2, mode="max")


def crown() -> Explanation:
    """A tree crown of the photo that the package ships, 7 x 7 bins."""
    image, boxes = load_photo()
    return roialign.explain((25, 25), boxes[17], 7, None, 2, True, image=image)


def simple() -> Explanation:
    """The tutorial's first example."""
    return roialign.explain(torch.arange(64.0).reshape(8, 8), (0.0, 0.375, 0.875, 0.625), 2, 5.0, 2)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs' hook: add the figures and the interactive pages, which are in no folder."""
    from mkdocs.structure.files import File

    figures = {
        "example": (example(), ("overview", "map", "sample", "values", "roi_pool", "matrices", "gradient")),
        "worked": (worked(), ("sums",)),
        "crown": (crown(), ("map",)),
        "simple": (simple(), ("overview",)),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (told, kinds) in figures.items():
            for kind in kinds:
                path = Path(folder) / f"{name}-{kind}.svg"
                save(told, path, kind)
                files.append(File.generated(config, f"figures/{path.name}", content=path.read_bytes()))
    for name, page in (("page.html", make_page()), ("page-zh.html", make_page({"language": "zh"}))):
        files.append(File.generated(config, name, content=page))
    return files


if __name__ == "__main__":
    save(example(), PICTURE)
