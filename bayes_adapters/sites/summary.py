"""What a loss needs of a local site, in the place of its draw and its posterior."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """What a loss asks of the local sites of a pass that it runs.

    Args:
        with_scales: whether it wants statistics of the posterior's standard deviations.
        recompute: whether every site of tokens is to run again in backward, on its own.
    """

    with_scales: bool = False
    recompute: bool = False


@dataclass(eq=False)
class Summary:
    """What a guide says of a local site whose draw and posterior nobody keeps.

    Args:
        with_scales: whether statistics of the posterior's standard deviations are wanted.
        divergence: KL(q ‖ p) of the site, or log q − log p of the draw where there is no closed form, nats.
        scales: mean, minimum and maximum of the posterior's standard deviations over real tokens; None where it has
            none, or nobody asked.
    """

    with_scales: bool
    divergence: Float[Tensor, "*batch"] | None = None
    scales: Float[Tensor, " 3"] | None = None


_asked: ContextVar[Asked | None] = ContextVar("bayes_adapters_asked", default=None)


def asked() -> Asked | None:
    """What the loss that is being evaluated asks; None where draws and posteriors are wanted."""
    return _asked.get()


@contextmanager
def asking(what: Asked) -> Iterator[None]:
    """Within the context, a pass answers ``what``."""
    token = _asked.set(what)
    try:
        yield
    finally:
        _asked.reset(token)
