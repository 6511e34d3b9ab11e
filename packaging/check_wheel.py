"""Whether a wheel for Linux is what its name says: its C library, its stable ABI, its machine, its size."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

MOST = 3 << 20  # bytes, beside the samples
MACHINES = {"x86_64": 62, "aarch64": 183}  # in the header of a shared object


def check(wheel: Path) -> str:
    """What was found, in a line; raises SystemExit where the wheel is not what it says."""
    machine = wheel.stem.split("manylinux_2_28_")[1]
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
        (core,) = [info for info in infos if re.search(r"/_core\..*so$", info.filename)]
        header = archive.read(core)[:20]
    samples = sum(info.compress_size for info in infos if "/samples/" in info.filename)
    rest = wheel.stat().st_size - samples
    shown = " ".join(said("auditwheel", "show", wheel).split())  # which it breaks into lines anywhere
    needed = re.search(r'consistent with the following platform tag: "manylinux_(\d+)_(\d+)_(\w+)"', shown)
    problems = []
    if int.from_bytes(header[18:20], "little") != MACHINES[machine]:
        problems.append(f"{core.filename} is not for {machine}")
    if not needed or (int(needed[1]), int(needed[2])) > (2, 28) or needed[3] != machine:
        problems.append(f"not manylinux_2_28: {shown}")
    if "abi3" in wheel.name:
        said("abi3audit", "--strict", wheel)
    if rest > MOST:
        problems.append(f"{rest} bytes beside the samples; expected at most {MOST}")
    if problems:
        raise SystemExit(f"{wheel.name}: " + "; ".join(problems))
    assert needed is not None
    return (
        f"{wheel.name}: {rest / 2**20:.2f} MiB and samples of {samples / 2**20:.2f}; its core unpacks to "
        f"{core.file_size / 2**20:.2f} and asks for manylinux_{needed[1]}_{needed[2]}"
    )


def said(tool: str, *arguments: str | Path) -> str:
    """What a tool beside this Python prints; raises SystemExit with that if it fails."""
    done = subprocess.run([Path(sys.executable).with_name(tool), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    print(check(Path(sys.argv[1])))
