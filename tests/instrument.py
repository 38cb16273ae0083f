"""The type checker that the tests put on every function of the package."""

from collections.abc import Iterator
from contextlib import contextmanager

from beartype import BeartypeConf, beartype
from jaxtyping import config

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""``beartype`` with the numeric tower of PEP 484: an int is accepted where a float is annotated, as mypy does."""


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the checks of annotations off, as users have it: they would object before the package's own errors."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)
