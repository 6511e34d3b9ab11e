"""The mutations themselves: every change of one operator, constant or word that is worth a run of the tests."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

SWAPS = {
    "Add": "Sub", "Sub": "Add", "Mul": "Div", "Div": "Mul", "FloorDiv": "Mul", "Mod": "Mul", "Pow": "Mul",
    "BitOr": "BitAnd", "BitAnd": "BitOr", "LShift": "RShift", "RShift": "LShift",
}  # fmt: skip
COMPARISONS = {
    "Eq": ["NotEq"], "NotEq": ["Eq"], "Is": ["IsNot"], "IsNot": ["Is"],
    "Lt": ["LtE", "GtE"], "LtE": ["Lt", "Gt"], "Gt": ["GtE", "LtE"], "GtE": ["Gt", "Lt"],
}  # fmt: skip
WORDS = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor",
    "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin",
}  # fmt: skip
CPP = [
    (r"(?<= )<=(?= )", ["<", ">"]), (r"(?<= )>=(?= )", [">", "<"]), (r"(?<= )<(?= )", ["<=", ">="]),
    (r"(?<= )>(?= )", [">=", "<="]), (r"(?<= )==(?= )", ["!="]), (r"(?<= )!=(?= )", ["=="]),
    (r"(?<= )\+(?= )", ["-"]), (r"(?<= )-(?= )", ["+"]), (r"(?<= )\*(?= )", ["/"]), (r"(?<= )/(?= )", ["*"]),
    (r"(?<= )\+=(?= )", ["-="]), (r"(?<= )-=(?= )", ["+="]), (r"(?<= )&&(?= )", ["||"]), (r"(?<= )\|\|(?= )", ["&&"]),
    (r"(?<=[ (])!(?=[\w(])", [""]), (r"(?<=[ (,])-(?=[\w(])", [""]), (r"\btrue\b", ["false"]), (r"\bfalse\b", ["true"]),
    (r"\b(?:continue|break)\b", ["{}"]),
    *[(rf"\b{word}\b(?=[(<])", [other]) for word, other in WORDS.items()],
]  # fmt: skip
CPP_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d*)?(?:e[-+]?\d+)?(?![\w.])")
CPP_PROSE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\]|\\.)*\"|^[ \t]*#[^\n]*", re.M | re.S)


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: str
    line: int
    before: str  # the lines that change, stripped; the same after the change
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before} -> {self.after}"


def make_mutant(path: str, original: str, source: str) -> Mutant:
    """Find what differs."""
    old, new = original.splitlines(), source.splitlines()
    first = next(i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1])
    tail = 0
    while tail < min(len(old), len(new)) - first - 1 and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    before, after = (" ".join(" ".join(lines[first : len(lines) - tail]).split()) for lines in (old, new))
    return Mutant(path, first + 1, before, after, source)


def python_mutants(path: str, original: str) -> Iterator[Mutant]:
    """cosmic-ray's operators that are worth their time, and swapped words."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    names = [f"ReplaceBinaryOperator_{old}_{new}" for old, new in SWAPS.items()]
    names += [f"ReplaceComparisonOperator_{old}_{new}" for old, others in COMPARISONS.items() for new in others]
    names += [
        "ReplaceUnaryOperator_Delete_USub",
        "ReplaceUnaryOperator_Delete_Not",
        "ReplaceUnaryOperator_Delete_Invert",
    ]
    names += ["AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"]
    names += ["ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop", "ExceptionReplacer"]
    names += ["NumberReplacer"]
    lines, quiet = original.splitlines(), no_program(original)
    nodes = list(ast_nodes(get_ast(original)))
    for name in names:
        operator = OperatorProvider()[name]()
        places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, column) in enumerate(places):
            if line in quiet or lines[line - 1][:column].endswith("strict="):
                continue
            with contextlib.suppress(SyntaxError):
                source = mutate_code(original, operator, occurrence)
                compile(source, path, "exec")
                yield make_mutant(path, original, source)
    for token in tokenize.generate_tokens(io.StringIO(original).readline):
        (line, column), text = token.start, token.string
        if token.type == tokenize.NAME and text in WORDS and line not in quiet:
            changed = lines[line - 1][:column] + WORDS[text] + lines[line - 1][column + len(text) :]
            yield make_mutant(path, original, "\n".join([*lines[: line - 1], changed, *lines[line:]]) + "\n")


def no_program(original: str) -> set[int]:
    """Lines that only type checkers and readers look at: annotations, decorators, imports for types."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(original)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            parts = [*node.decorator_list]
        if isinstance(node, ast.FunctionDef):
            parts += [each for each in (*ast.walk(node.args), node.returns) if isinstance(each, ast.expr)]
            parts = [each for each in parts if each not in [*node.args.defaults, *node.args.kw_defaults]]
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            parts = [node]
        for part in parts:
            skipped.update(range(part.lineno, part.end_lineno + 1))
    return skipped


def cpp_mutants(path: str, original: str) -> Iterator[Mutant]:
    """Operators, constants and words of C++, by expressions that rely on clang-format's spaces."""
    code = CPP_PROSE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), original)
    changes = [(found, other) for pattern, others in CPP for found in re.finditer(pattern, code) for other in others]
    for found in CPP_NUMBER.finditer(code):
        value = float(found[0]) if re.search(r"[.e]", found[0]) else int(found[0])
        changes += [(found, str(value + 1)), (found, str(value - 1))]
    for found, other in changes:
        if "template" not in original[original.rfind("\n", 0, found.start()) + 1 : found.start()]:
            yield make_mutant(path, original, original[: found.start()] + other + original[found.end() :])
