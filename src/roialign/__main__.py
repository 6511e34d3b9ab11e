"""``python -m roialign`` and the command ``roialign``, which needs the extras."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from .cli import app
    except ModuleNotFoundError as missing:
        sys.exit(f"roialign: the command line needs {missing.name}; install it with: pip install 'roialign[all]'")
    app(prog_name="roialign")


if __name__ == "__main__":
    main()
