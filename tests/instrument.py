"""The checks of annotations that the tests put on the package: shapes, dtypes and classes of arguments and returns.

jaxtyping has an import hook of its own. It checks every function by the slow way that arrays need, where sizes are
bound to names for the length of a call, arguments twice, and decorates a function within a function anew at each call
of the outer one: half of the time of the tests. Here beartype checks each function once, within jaxtyping's context
where arrays are annotated, and functions within functions not at all.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep585DeprecationWarning
from jaxtyping import config, jaxtyped

_typed = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""``beartype`` with the numeric tower of PEP 484: an int is accepted where a float is annotated, as mypy does."""
_PARTS = ["__code__", "__globals__", "__name__", "__defaults__", "__closure__"]
_ARRAY = re.compile(r"\b(Float|Int|Bool|Num|Shaped|Integer|Inexact|Complex|UInt\d*|Int\d+|Float\d+)\[")


def checked(what: Any) -> Any:
    """Check the annotations of a function, or the fields of a dataclass, at each call."""
    if isinstance(what, type):
        return jaxtyped(what, typechecker=_typed)
    arrays = any(_ARRAY.search(str(annotation)) for annotation in what.__annotations__.values())
    hints = {name: _resolved(annotation, what) for name, annotation in what.__annotations__.items()}
    made: list[Callable[..., Any]] = []

    @functools.wraps(what)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return what(*args, **kwargs)
        if not made:  # not before the first call: the module now has the names that it defines later
            late = {name: _resolved(hint, what) for name, hint in hints.items()}
            with warnings.catch_warnings():  # typing.Callable in annotations of Pyro's and jaxtyping's
                warnings.simplefilter("ignore", BeartypeDecorHintPep585DeprecationWarning)
                typed = _typed(_with(what, {name: Any if isinstance(h, str) else h for name, h in late.items()}))
            made.append(jaxtyped(typed, typechecker=None) if arrays else typed)
        return made[0](*args, **kwargs)

    return call


def _resolved(annotation: Any, function: FunctionType) -> Any:
    """What a written annotation means; where it is for readers only it is left: a name is not there, or two ``*S``."""
    try:
        return eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
    except (NameError, ValueError):
        return annotation


def _with(function: FunctionType, annotations: dict[str, Any]) -> FunctionType:
    copy = FunctionType(*(getattr(function, name) for name in _PARTS))
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__annotations__ = annotations
    return copy


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the checks of annotations off, as users have it: they would object before the package's own errors."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


class _Decorate(ast.NodeTransformer):
    """Put :func:`checked` on the functions and classes of a module, and on the methods of its classes."""

    def _checked(self, node: ast.AST) -> ast.expr:
        return ast.copy_location(ast.parse("__import__('tests.instrument').instrument.checked", mode="eval").body, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # Next to the function: what other decorators make of it need not have its annotations.
        node.decorator_list.append(self._checked(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        # Before everything else: a dataclass has its fields only after its own decorator.
        node.decorator_list.insert(0, self._checked(node))
        return self.generic_visit(node)


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Never from a .pyc file, which would be the code without checks, or would be taken for it."""
        path = self.get_filename(fullname)
        tree = _Decorate().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.package and not fullname.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def instrument(package: str) -> None:
    """Check the annotations of what is imported of ``package`` from now on."""
    sys.meta_path.insert(0, _Finder(package))
