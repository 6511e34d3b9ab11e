"""A mutant in the place of the code it was made of, in a process that has imported everything already."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

CORE = "roialign._core"
PLAIN = (bool, int, float, str, tuple, list, dict, set, frozenset, type(None))


class CannotReplaceError(Exception):
    """The mutant is in a place that only importing everything anew would reach."""


def replace_source(name: str, path: Path, source: str, original: str) -> None:
    """Let a module that is imported already run another source than its original.

    Functions stay the objects that others hold, with other code in them; all else that changes is replaced wherever it
    went, a table with what other modules have entered.
    """
    module = sys.modules[name]
    as_it_was = _executed(name, path, original)
    for key, new in _executed(name, path, source).items():
        old, was = vars(module).get(key, new), as_it_was.get(key)
        if key.startswith("__") or new is old:
            continue
        if isinstance(new, type) and new.__module__ == name:
            _replace_class(old, new, str(path))
        elif _is_own(new, str(path)):
            _replace_function(old, new)
        elif not isinstance(new, PLAIN):  # nobody can say whether it is equal
            _replace_everywhere(key, old, new)
        elif _differs(was, new):
            entered = {each: old[each] for each in old.keys() - was.keys()} if isinstance(old, dict) else {}
            _replace_everywhere(key, old, {**new, **entered} if entered else new)


def _executed(name: str, path: Path, source: str) -> dict[str, Any]:
    """The names that a module has anew."""
    module = sys.modules[name]
    fresh = types.ModuleType(name)
    fresh.__dict__.update({key: module.__dict__.get(key) for key in ("__file__", "__package__", "__spec__")})
    sys.modules[name] = fresh  # what looks its own module up, as dataclasses do
    try:
        exec(compile(source, str(path), "exec"), fresh.__dict__)
    finally:
        sys.modules[name] = module
    return fresh.__dict__


def replace_core(library: Path) -> None:
    """Let the package call another build of its core."""
    loader = importlib.machinery.ExtensionFileLoader(CORE, str(library))
    spec = importlib.util.spec_from_file_location(CORE, str(library), loader=loader)
    assert spec is not None
    core = importlib.util.module_from_spec(spec)
    loader.exec_module(core)
    _replace_everywhere("_core", sys.modules[CORE], core)
    sys.modules[CORE] = core
    unready = sys.modules["roialign.backends.native"]._prepare()
    assert not unready, unready


def run_forked(code: str, backend: str, *arguments: str, timeout: float = 0) -> str:
    """``helpers.run_python`` in a fork, which has the mutant; a Python of its own would import the original.

    The limit on the processor's time is the mutant's.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.dup2(writing, 1)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.argv = ["-c", *arguments]
            os.environ["ROIALIGN_BACKEND"] = backend
            from roialign import backends

            backends._forced[0].name = backend
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        output = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"exit status {status}\n{output}"
    return output


def _is_own(thing: object, path: str) -> bool:
    """Whether it is a function of this source, be it inside a decorator of another."""
    if not isinstance(thing, types.FunctionType):
        return False
    cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_set(cell)]
    return thing.__code__.co_filename == path or any(_is_own(cell, path) for cell in cells)


def _is_set(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _replace_function(old: Any, new: Any) -> None:
    if not isinstance(old, types.FunctionType) or old.__code__.co_freevars != new.__code__.co_freevars:
        raise CannotReplaceError(getattr(new, "__qualname__", new))
    for held, other in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
        if not _is_set(other):
            continue
        if isinstance(other.cell_contents, types.FunctionType):
            _replace_function(held.cell_contents, other.cell_contents)
        elif isinstance(other.cell_contents, PLAIN):
            held.cell_contents = other.cell_contents
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def _replace_class(old: type, new: type, path: str) -> None:
    if [base.__name__ for base in old.__bases__] != [base.__name__ for base in new.__bases__]:
        raise CannotReplaceError(new.__qualname__)
    for key, value in list(vars(new).items()):
        had = vars(old).get(key)
        if isinstance(value, staticmethod | classmethod) and _is_own(value.__func__, path):
            _replace_function(getattr(had, "__func__", None), value.__func__)
        elif isinstance(value, property) and value.fget and _is_own(value.fget, path):
            _replace_function(getattr(had, "fget", None), value.fget)
        elif _is_own(value, path):
            _replace_function(had, value)
        elif key == "_field_defaults":
            if _differs(had, value):  # of a NamedTuple
                old.__new__.__defaults__ = new.__new__.__defaults__  # type: ignore[attr-defined]
        elif not key.startswith("__") and isinstance(value, PLAIN) and _differs(had, value):
            setattr(old, key, value)


def _differs(old: object, new: object) -> bool:
    """Functions and classes made anew do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() != new.keys() or any(_differs(old[key], new[key]) for key in old)
    if isinstance(old, list | tuple) and type(old).__name__ == type(new).__name__:
        return len(old) != len(new) or any(map(_differs, old, new))  # type: ignore[arg-type]
    if isinstance(new, PLAIN):
        return type(old) is not type(new) or old != new
    return getattr(old, "__qualname__", old) != getattr(new, "__qualname__", new)


def _replace_everywhere(key: str, old: object, new: object) -> None:
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType) and vars(module).get(key) is old:
            setattr(module, key, new)
