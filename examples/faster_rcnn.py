"""Faster R-CNN on MobileNetV2: the tutorial's second example, one training step and one inference on a real photo."""

import torch
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator

from roialign import MultiScaleRoIAlign  # was: from torchvision.ops import MultiScaleRoIAlign
from roialign.samples import load_photo

backbone = mobilenet_v2(weights=None).features
backbone.out_channels = 1280

anchor_generator = AnchorGenerator(sizes=((32, 64, 128, 256, 512),), aspect_ratios=((0.5, 1.0, 2.0),))
roi_pooler = MultiScaleRoIAlign(featmap_names=["0"], output_size=7, sampling_ratio=2)

model = FasterRCNN(
    backbone, num_classes=2, rpn_anchor_generator=anchor_generator, box_roi_pool=roi_pooler
)  # the background and trees

image, boxes = load_photo()
target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.int64)}

optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
losses = model([image], [target])
optimizer.zero_grad()
sum(losses.values()).backward()
optimizer.step()
print({name: round(loss.item(), 4) for name, loss in losses.items()})

model.eval()
with torch.inference_mode():
    (found,) = model([image])
print(f"{len(found['boxes'])} boxes from a model that has seen one photo once")
