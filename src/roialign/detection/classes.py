"""Whose class is whose: by name, or as ``--classes`` says."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence

from .fields import shown


def parse(told: str) -> list[tuple[str, str]]:
    """``tree=crown,bush`` as pairs of a class and its name in the file; a name with a comma is put in quotes.

    Raises:
        ValueError: an empty name, or one of the file's twice.
    """
    try:
        names = next(iter(csv.reader([told], strict=True)), [])
    except csv.Error as error:
        raise ValueError(f"--classes: got {shown(told)}: {error}") from None
    pairs = []
    for name in names:
        new, _, old = (part.strip() for part in name.partition("="))
        pairs.append((new, old or new))
        if not new or ("=" in name and not old):
            raise ValueError(f"--classes: got {shown(told)}; expected names such as tree,bush or tree=crown")
    if not pairs or len({old.casefold() for _, old in pairs}) < len(pairs):
        raise ValueError(f"--classes: got {shown(told)}; expected names, each of the file's once")
    return pairs


def select(
    theirs: Sequence[str], pairs: Sequence[tuple[str, str]], all: bool = True
) -> tuple[list[str], dict[int, int]]:
    """The classes that ``--classes`` names, be they ``all`` there or not.

    Returns:
        Their names; and for the labels of classes that stay, their labels among these names.

    Raises:
        ValueError: a name that no class has, where ``all`` must be there.
    """
    names = list(dict.fromkeys(new for new, _ in pairs))
    kept: dict[int, int] = {}
    for new, old in pairs:
        same = [label for label, name in enumerate(theirs, 1) if name == old] or [
            label for label, name in enumerate(theirs, 1) if name.casefold() == old.casefold()
        ]
        if all and not same:
            raise ValueError(f"--classes: got {shown(old)}; the classes are {shown(list(theirs))}")
        kept.update(dict.fromkeys(same, names.index(new) + 1))
    return names, kept


def match(theirs: Sequence[str], ours: Sequence[str], whose: str, needed: Collection[int]) -> dict[int, int]:
    """The labels of a file's classes among others', by name; where only one has it, in whatever case.

    Raises:
        ValueError: a class whose label is ``needed`` is one that the others lack, or that several have.
    """
    if list(theirs) == list(ours):
        return {label: label for label in range(1, len(ours) + 1)}
    exact, folded = _labels(ours), _labels([name.casefold() for name in ours])
    found = {label: exact.get(name) or folded.get(name.casefold(), []) for label, name in enumerate(theirs, 1)}
    kept = {label: same[0] for label, same in found.items() if len(same) == 1}
    for label in needed:
        if label not in kept:
            name = theirs[label - 1]
            rest = ",".join(dict.fromkeys(ours[new - 1] for new in kept.values()))
            out = f"--classes {shown(rest)} leaves it out, " if rest else ""
            fault = f"has {len(found[label])} times" if found[label] else "lacks"
            raise ValueError(
                f"its class {shown(name)} is one that {whose} {fault}: {shown(list(ours))}; "
                f"{out}--classes {shown(f'{ours[0]}={name}')} takes it for that"
            )
    return kept


def _labels(names: Sequence[str]) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {}
    for label, name in enumerate(names, 1):
        found.setdefault(name, []).append(label)
    return found
