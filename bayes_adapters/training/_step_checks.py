"""What a step must pass before it changes a weight: gradients reach the adapters, and every number is finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.adapters._checks import ends_gradients
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.errors import ConfigError, NonFiniteError


@contextmanager
def gradients_flow(backbone: nn.Module) -> Iterator[None]:
    """Check the passes and gradients within the context: none may end in a layer of the frozen backbone.

    A frozen linear layer hands on gradients to what came before it. Some kernels for quantised layers do not, and
    adapters before them would never move.

    Raises:
        ConfigError: a linear layer whose input needs a gradient returns an output that does not; or adapters took part
            and none of their parameters has a gradient at the end.
    """
    adapters = adapted_layers(backbone)
    ran: set[str] = set()

    def look(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        ran.add(path)
        # Where the backbone itself computes without gradients, as under checkpointing, it means to.
        needs = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        if needs and isinstance(output, Tensor) and not output.requires_grad and dimensions(module) is not None:
            raise ends_gradients(path, type(module).__name__)

    watched = [(path, m) for path, m in backbone.named_modules() if path in adapters or dimensions(m) is not None]
    handles = [module.register_forward_hook(partial(look, path)) for path, module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    trained = {path: layer for path, layer in adapters.items() if path in ran}
    gradients = [p.grad for layer in trained.values() for p in layer.parameters() if p.requires_grad]
    if gradients and all(gradient is None for gradient in gradients):
        raise ConfigError(
            f"No adapter has a gradient after the first step of an epoch, in none of {len(trained)} layers, such as "
            f"{next(iter(trained))!r}: the loss does not depend on them. Is their output unused, as a pooler's is, or "
            "does the backbone detach its hidden states?"
        )


def gradient_norm(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients, a scalar.

    Raises:
        ConfigError: no parameter has a gradient.
    """
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    if not gradients:
        raise ConfigError(
            "The loss depends on no trainable parameter: every gradient is missing. Are the adapters disabled?"
        )
    return torch.nn.utils.get_total_norm(gradients)


def check_finite(step: int, values: Mapping[str, float], parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`NonFiniteError` unless all ``values`` are finite; it names the first gradient that is not."""
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        first = next((name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())), None)
        where = f"The first parameter with a non-finite gradient is {first!r}."
        where = "No single gradient is non-finite: their norm overflows." if first is None else where
        raise non_finite(step, ", ".join(bad), where)


def non_finite(step: int, what: str, where: str) -> NonFiniteError:
    """Build the error for step ``step``."""
    return NonFiniteError(
        f"Step {step}: {what}. {where} Likely causes: a learning rate that is too high, no clip_norm, a posterior "
        "scale that reached 0 or grew without bound (an infinite kl), or targets far outside the model's range (an "
        "infinite nll). No weight was changed by this step."
    )
