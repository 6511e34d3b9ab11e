"""RoIAlign on an 8x8 map: the tutorial's first example. Only the import differs from torchvision's."""

import torch

from roialign import RoIAlign  # was: from torchvision.ops import RoIAlign

pooler = RoIAlign(output_size=2, sampling_ratio=2, spatial_scale=5)
feature_map = torch.arange(64, dtype=torch.float32).reshape(1, 1, 8, 8)
boxes = [torch.tensor([[0.0, 0.375, 0.875, 0.625]])]  # one image with one box: x1, y1, x2, y2

pooled = pooler(feature_map, boxes)
print(pooled.shape)
print(pooled)
