"""Which kinds of gradient checkpointing are refused: those that lose gradients or draws without a word."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from bayes_adapters.errors import ConfigError


def require_recomputable(kind: str, function: Callable[..., Any]) -> None:
    """Raise :class:`ConfigError` if ``function``, which checkpoints blocks of class ``kind``, says it is reentrant.

    Raises:
        ConfigError: it is, or it does not bring back the state of torch's generator.
    """
    options = _options(function)
    if options.get("use_reentrant", False) is not False:
        raise reentrant(kind, f"with use_reentrant={options['use_reentrant']}")
    if options.get("preserve_rng_state", True) is not True:
        raise ConfigError(
            f"The backbone's {kind} is checkpointed with preserve_rng_state={options['preserve_rng_state']!r}: run "
            "again in backward it would draw other cores than those of the loss, and the gradients would be wrong. "
            "Leave preserve_rng_state out."
        )


def reentrant(kind: str, how: str) -> ConfigError:
    """A block of this kind is checkpointed so that it first runs without gradients."""
    return ConfigError(
        f"The backbone's {kind} is checkpointed {how}: it runs without gradients first, so that guide and random parts "
        "would have none. Switch to the other kind: "
        "backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})."
    )


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """The options that a function has been given; torch's own is reentrant unless told otherwise."""
    found: dict[str, Any] = {}
    while isinstance(function, partial):
        found = {**function.keywords, **found}
        function = function.func
    if function is checkpoint:
        found.setdefault("use_reentrant", "None, which is True")
    return found
