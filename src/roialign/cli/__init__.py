"""The command ``roialign``, which needs the extras."""

from .main import app as app
