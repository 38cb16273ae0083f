"""What heads refuse: likelihoods with another number of targets, and options that belong elsewhere."""

from __future__ import annotations

from typing import Any

from bayes_adapters.errors import ConfigError, described
from bayes_adapters.likelihoods import Likelihood


def require_same_count(head: str, pooling: str, per_token: bool, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless head and likelihood are both per token or both per example."""
    if likelihood.per_token == per_token:
        return
    kinds = {True: ("token", "Categorical"), False: ("example", "Tagging")}
    (wanted, other), (given, _) = kinds[likelihood.per_token], kinds[per_token]
    raise ConfigError(
        f"{type(likelihood).__name__} has one target per {wanted}, and the {head} with pooling={pooling!r} leaves one "
        f"vector per {given}. Leave pooling out, or take {other} as the likelihood."
    )


def require_head(head: Any, base: type, pooling: str | None) -> Any:
    """Return ``head``; raise :class:`ConfigError` unless it is one, and no ``pooling`` is given beside ``head=``."""
    if not isinstance(head, base):
        raise ConfigError(
            "head must be an object such as LinearHead(pooling='cls'), of a subclass of bayes_adapters.heads.Head; got "
            f"{described(head)}."
        )
    if pooling is not None:
        raise ConfigError(
            f"pooling={str(pooling)!r} is an option of the head, and head= is given: pass it there, "
            f"{type(head).__name__}(pooling={str(pooling)!r})."
        )
    return head


def require_tokens(model: str, lost: bool, likelihood: object) -> None:
    """Raise :class:`ConfigError` if the likelihood has a target per token and the structure has lost the tokens."""
    if lost:
        raise ConfigError(
            f"{model} joins several streams into one vector per example, so there is no token that "
            f"{type(likelihood).__name__} could label. Take a likelihood with one target per example."
        )
