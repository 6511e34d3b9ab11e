"""``python -m benchmarks``: the same as ``roialign bench``."""

import typer

from roialign.cli.main import bench

if __name__ == "__main__":
    typer.run(bench)
