"""torchvision's choice of what to learn from, by seeds of ours."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler


class SeededSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """torchvision's choice of anchors and proposals to learn from, with each image's own seed, and counted."""

    def __init__(self, base: BalancedPositiveNegativeSampler) -> None:
        super().__init__(base.batch_size_per_image, base.positive_fraction)
        self.seeds: list[int] = []
        self.count = self.positive = 0

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's, image by image."""
        positive, negative = [], []
        for matched, seed in zip(matched_idxs, self.seeds, strict=True):
            torch.manual_seed(seed)
            chosen = super().__call__([matched])
            positive += chosen[0]
            negative += chosen[1]
        self.count = int(sum(mask.sum() for mask in positive + negative))
        self.positive = int(sum(mask.sum() for mask in positive))
        return positive, negative
