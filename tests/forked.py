"""Programs in processes of their own, forked from one that has imported torch: that takes longer than most of them."""

from __future__ import annotations

import atexit
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from typing import Any


@functools.cache
def server() -> subprocess.Popen[str]:
    """This file, running; it ends with us."""
    env = {"OMP_NUM_THREADS": "2", **os.environ}
    found = subprocess.Popen([sys.executable, __file__], env=env, stdin=-1, stdout=-1, text=True, bufsize=1)
    atexit.register(found.communicate)
    return found


def run(
    code: str, arguments: tuple[str, ...] = (), more: dict[str, str] | None = None, timeout: int = 240
) -> tuple[int, str, str]:
    """Run code with what this process can import and its environment and more, for ``timeout`` seconds of a processor.

    Returns:
        The exit status, that of a signal negative, and what was written to stdout and stderr.
    """
    program = {"code": code, "arguments": arguments, "env": {**os.environ, **(more or {})}, "path": sys.path}
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as error:
        talk = server()
        assert talk.stdin is not None
        assert talk.stdout is not None
        talk.stdin.write(json.dumps({**program, "timeout": timeout, "out": out.name, "error": error.name}) + "\n")
        return int(talk.stdout.readline()), out.read(), error.read()


def become(code: str, arguments: list[str], env: dict[str, str], path: list[str], timeout: int, **files: str) -> None:
    """Run a program, as ``python -c`` would, and end with it."""
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:], sys.path[:] = ["-c", *arguments], path
    for number, name in enumerate((os.devnull, files["out"], files["error"])):
        os.dup2(os.open(name, os.O_RDWR), number)
    # What works without end is killed, even in the core, and so is what waits without end. The clock alone would not
    # do: on a machine that others keep busy it has passed before the work is done.
    resource.setrlimit(resource.RLIMIT_CPU, (timeout, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.alarm(900)
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


def main() -> None:
    """Fork for each line that comes in, and answer with how it ended."""
    import torch  # noqa: F401

    for line in sys.stdin:
        program: dict[str, Any] = json.loads(line)
        child = os.fork()
        if child == 0:
            become(**program)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
