"""The house itself: imports point one way, files are short, and formulas are not buried under refusals."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = {"bayes_adapters": "bayes_adapters", "models": "bayes_adapters.models", "guides": "bayes_adapters.guides"}
MOST_LINES = 300
MOST_REFUSING = 0.12


def sources() -> Iterator[tuple[str, Path]]:
    """Yield (dotted module, file) of everything in the package."""
    for top, package in TOPS.items():
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


def room(module: str) -> str:
    """Return the folder (or file) below ``bayes_adapters`` that a module is in."""
    return module.split(".")[1] if "." in module else "bayes_adapters"


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of this package that a module imports; those for type checkers only are left out."""
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in unseen and (node.module or "").startswith("bayes_"):
            base = node.module or ""
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "bayes_adapters" else (base,)


def arrows() -> dict[str, set[str]]:
    """Return room → rooms that it imports."""
    found: dict[str, set[str]] = {}
    for module, path in sources():
        own = found.setdefault(room(module), set())
        own |= {room(name) for name in imported(ast.parse(path.read_text()))} - {room(module)}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return rooms that import one another in a circle; empty where there is none."""
    done: set[str] = set()

    def walk(place: str, path: list[str]) -> list[str]:
        if place in path:
            return path[path.index(place) :]
        if place in done:
            return []
        for after in sorted(graph.get(place, ())):
            if found := walk(after, [*path, place]):
                return found
        done.add(place)
        return []

    return next((found for place in sorted(graph) if (found := walk(place, []))), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_rooms_import_one_another_without_a_circle() -> None:
    assert circle(arrows()) == []


@pytest.mark.parametrize("top", TOPS)
def test_files_are_short(top: str) -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / top).rglob("*.py")}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


def code_lines(text: str, tree: ast.AST) -> set[int]:
    """Return the numbers of lines that are neither empty, nor comments, nor docstrings."""
    prose = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = enumerate(text.splitlines(), 1)
    return {n for n, line in lines if line.strip() and not line.lstrip().startswith("#") and n not in prose}


def refusing_lines(tree: ast.AST) -> set[int]:
    """Return the numbers of lines of ``raise`` statements and of branches and handlers that end in one."""
    found: set[int] = set()
    for node in ast.walk(tree):
        branch = isinstance(node, ast.If | ast.ExceptHandler) and isinstance(node.body[-1], ast.Raise)
        if branch or isinstance(node, ast.Raise):
            last = node.body[-1].end_lineno if isinstance(node, ast.If) else node.end_lineno  # type: ignore[attr-defined]
            found |= set(range(node.lineno, last + 1))  # type: ignore[attr-defined]
    return found


def test_refusals_stand_beside_the_mathematics() -> None:
    code = refusing = 0
    for _, path in sources():
        if "checks" in path.name:
            continue
        text = path.read_text()
        tree = ast.parse(text)
        lines = code_lines(text, tree)
        code, refusing = code + len(lines), refusing + len(lines & refusing_lines(tree))
    assert refusing / code <= MOST_REFUSING
