"""torchvision's detectors take our pooler as their own."""

from __future__ import annotations

import torchvision.ops

from .. import modules


class MultiScaleRoIAlign(modules.MultiScaleRoIAlign, torchvision.ops.MultiScaleRoIAlign):  # type: ignore[misc]
    """:class:`roialign.MultiScaleRoIAlign`, accepted where torchvision asks for an instance of its own class.

    ``roialign.MultiScaleRoIAlign(...)`` makes one of these where torchvision is installed; nothing is inherited from
    torchvision's class but its name.
    """
