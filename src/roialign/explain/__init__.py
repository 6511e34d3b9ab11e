"""See what region pooling does to one box: every intermediate number, figures of them, and an interactive page.

``roialign.explain(...)`` is :func:`explain`; the module itself can be called, so that its parts stay importable.
"""

from __future__ import annotations

import sys
from types import ModuleType

from .explanation import Explanation, Gradient, explain
from .values import AxisValues

__all__ = ["AxisValues", "Explanation", "Gradient", "explain"]


class _CallableModule(ModuleType):
    """``roialign.explain`` names this package and the function that it is for."""

    __call__ = staticmethod(explain)


sys.modules[__name__].__class__ = _CallableModule
