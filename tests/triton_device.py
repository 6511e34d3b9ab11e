"""Where the tests of the kernels in Triton run them: on a GPU, or on a CPU in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from roialign import backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STATUS = backends.available(torch.empty(0, 0, 0, 0, device=DEVICE))["triton"]
needs_kernels = pytest.mark.skipif(not STATUS.ready, reason=f"{STATUS.reason}; TRITON_INTERPRET=1 interprets")
