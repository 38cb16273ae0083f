"""What a guide over gates refuses."""

from __future__ import annotations

from bayes_adapters.errors import ConfigError
from bayes_adapters.inference._pyro import is_traced


def require_probability(init_probability: object) -> None:
    """Raise :class:`ConfigError` unless ``init_probability`` is a probability of which neither outcome is certain."""
    if not isinstance(init_probability, int | float) or not 0.0 < init_probability < 1.0:
        raise ConfigError(f"init_probability is φ at the start and must lie in (0, 1); got {init_probability!r}.")


def require_untraced_gates() -> None:
    """Raise :class:`ConfigError` within a trace, which would score a relaxed gate as a Bernoulli's."""
    if is_traced():
        raise ConfigError(
            "RankGates was traced in training mode, as Pyro's SVI and its ELBOs do. They would score a gate between 0 "
            "and 1 as a Bernoulli's. Train with bayes_adapters.ELBO or fit(), or call guide.eval() to look at draws."
        )
