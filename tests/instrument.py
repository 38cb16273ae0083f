"""The type checker that the tests put on every function of the package."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""``beartype`` with the numeric tower of PEP 484: an int is accepted where a float is annotated, as mypy does."""
