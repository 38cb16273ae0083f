"""What guides refuse at construction: options that are out of range, or have no effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, DataError, unknown_name, whole_number
from bayes_adapters.inference._draw_checks import check_draws, unsampled
from bayes_adapters.inference._pyro import is_traced
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.reliability import Reliability
from bayes_adapters.sites import Site


def require_draws_of(samples: Mapping[str, Tensor], sites: Sequence[Site]) -> int:
    """Return how many draws there are; raise :class:`ConfigError` unless every site has as many of its shape."""
    if lacking := [site.name for site in sites if site.name not in samples]:
        raise unsampled(lacking[0], samples)
    count = check_draws({site.name: samples[site.name] for site in sites})
    for site in sites:
        if tuple(samples[site.name].shape[1:]) != site.shape:
            raise ConfigError(
                f"Draws of {site.name!r} have shape {tuple(samples[site.name].shape)}; expected (S, *{site.shape}), "
                "draws first."
            )
    return count


def require_sizes(**sizes: int) -> None:
    """Raise :class:`ConfigError` for the first size that is no whole number of at least 1."""
    for name, value in sizes.items():
        whole_number(name, value)


def check_heads(dim: int, heads: int) -> None:
    """Raise :class:`ConfigError` unless the heads divide the width of the context."""
    require_sizes(dim=dim, heads=heads)
    if dim % heads:
        raise ConfigError(f"heads must divide dim; got heads={heads}, dim={dim}.")


def check_context(context: str, context_dim: object, shared: bool, unread: Mapping[str, bool]) -> None:
    """Raise :class:`ConfigError` for an option of an amortised guide that its context does not read.

    Args:
        context: what the posterior is conditioned on besides the layer's feature.
        context_dim: d_a, or modality → d_a, or None.
        shared: whether layers share key and value projections.
        unread: option that has no effect with this context → whether it was given.
    """
    if (context == "none") != (context_dim is None):
        raise ConfigError(
            f"context={context!r} and context_dim={context_dim} do not fit: with 'none' there are no frames and no "
            "width; every other context needs context_dim, the width of its frames."
        )
    if shared and context not in ("global", "cross_attention"):
        raise ConfigError(
            f"kv_sharing='shared' has no effect with context={context!r}; it is for 'global' and 'cross_attention'."
        )
    for option, given in unread.items():
        if given:
            why = "only 'cross_attention' has heads" if option == "heads" else "no context is read"
            raise ConfigError(
                f"{option}= has no effect with context={context!r}: {why}. Leave it out, or take another context."
            )


def require_spread(spread: bool, reliable: bool) -> None:
    """Raise :class:`ConfigError` if ``reliability=`` is to widen a posterior that is a point."""
    if reliable and not spread:
        raise ConfigError(
            "scale=None makes the posterior a point, and reliability= says how wide it is. Leave one of them out."
        )


def scale_interval(init_scale: float | Sequence[float]) -> tuple[float, float]:
    """Return the ends of an interval of standard deviations; one number is both.

    Raises:
        ConfigError: they are not positive, finite and in order.

    >>> scale_interval(0.1), scale_interval([0.1, 0.2])
    ((0.1, 0.1), (0.1, 0.2))
    """
    ends = [init_scale] * 2 if isinstance(init_scale, int | float) else list(init_scale)
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] < math.inf:
        raise ConfigError(
            f"init_scale is a standard deviation and must be positive and finite, or a pair low ≤ high; got "
            f"{init_scale}."
        )
    return ends[0], ends[1]


def hidden_widths(bottleneck: int | Mapping[str, int] | None, sources: Sequence[str]) -> dict[str, int]:
    """Return source encoder → h, of those that a bottleneck is given for.

    Raises:
        ConfigError: an unknown encoder, or a width below 1.
    """
    given = {} if bottleneck is None else bottleneck
    widths = dict(given) if isinstance(given, Mapping) else dict.fromkeys(sources, given)
    for source, hidden in widths.items():
        if source not in sources:
            raise unknown_name("source encoder in bottleneck", source, sources)
        whole_number(f"bottleneck of {source!r}", hidden)
    return widths


def require_frames(frames: Frames | None, modality: str, null_context: bool) -> None:
    """Raise :class:`DataError` if frames of ``modality`` are missing, and no null context stands in for them.

    Args:
        frames: of the whole batch; None where it has none.
        modality: their key in the batch.
        null_context: whether the guide has learned what stands in for missing context.
    """
    if frames is None:
        if not null_context:
            raise DataError(
                f"The batch has no context {modality!r} and the guide was built with null_context=False. Pass "
                f"Batch(..., context={{{modality!r}: Frames(values, mask)}}), or build the guide with "
                "null_context=True."
            )
        return
    if not null_context and not bool(frames.present.all()):
        rows = (~frames.present).nonzero().flatten().tolist()
        raise DataError(
            f"The context {modality!r} of rows {rows[:8]} is entirely masked and the guide was built with "
            "null_context=False. Drop these examples, or build the guide with null_context=True."
        )


def check_reliability(reliability: object, context_dim: int, model: AdapterModel) -> None:
    """Raise :class:`ConfigError` unless it is a :class:`Reliability` that fits the guide's context and the priors."""
    if not isinstance(reliability, Reliability):
        raise ConfigError(
            f"reliability must be a Reliability or None; got a {type(reliability).__name__}. Fit a density and pass "
            "reliability=Reliability(density)."
        )
    if reliability.density.context_dim != context_dim:
        raise ConfigError(
            f"The frame density is {reliability.density.context_dim} wide and the guide has context_dim={context_dim}. "
            "Fit it on frames of the same encoder."
        )
    for site in model.sites:
        prior = base_distribution(model.prior.of(site))
        if not isinstance(prior, torch.distributions.Normal):
            raise ConfigError(
                f"reliability= falls back to a Gaussian prior; the prior of {site.name!r} is {type(prior).__name__}. "
                "Take a Normal prior, or build the guide without reliability=."
            )


def require_float32(guide: nn.Module) -> None:
    """Raise :class:`ConfigError` if a guide's network was cast with its model."""
    parameter = next(guide.parameters(), None)
    if parameter is not None and parameter.dtype != torch.float32:
        raise ConfigError(
            f"This {type(guide).__name__} is {parameter.dtype}; posteriors are float32 whatever the backbone is. Call "
            "guide.float(), and cast the model alone."
        )


def require_uncertain(phi: str, scale: object) -> None:
    """Raise :class:`ConfigError` if the core is fixed and was given a way to compute its deviation."""
    if phi == "identity" and scale is not None:
        raise ConfigError("phi='identity' fixes Φ = I, so there is nothing to be uncertain about; leave scale out.")


def require_network(phi: str, bottleneck: object, learned: bool) -> None:
    """Raise :class:`ConfigError` if a hidden width was given and no network is learned."""
    if bottleneck is not None and not learned:
        raise ConfigError(f"phi={phi!r} has no network and no hidden width; leave bottleneck out.")


def require_gamma(gamma: int, width: int, *, read: bool) -> None:
    """Raise :class:`ConfigError` if the hidden width is the descriptor's over ``gamma``, and that is below 1."""
    if read and gamma > width:
        raise ConfigError(f"gamma must be between 1 and the descriptor's width {width}; got {gamma}.")


def require_product(rank: int, whole: bool) -> None:
    """Raise :class:`ConfigError` if the core of this rank is to be a product of factors and one would be ``whole``."""
    if whole:
        raise ConfigError(
            f"phi='kron' splits Φ (r, r) into two smaller factors, which the rank r = {rank} does not "
            "allow: take a rank that is a product, such as 4, 8 or 16, or phi='dense'."
        )


def no_bijection(prior: TorchDistributionMixin) -> ConfigError:
    """No point can be learned under this prior."""
    return ConfigError(
        f"A point estimate needs a continuous prior; {type(base_distribution(prior)).__name__} is discrete, or "
        "torch knows no bijection onto its support. Take a continuous one, such as Normal or HalfNormal."
    )


def require_inside(site: Site, prior: TorchDistributionMixin, start: Tensor) -> None:
    """Raise :class:`ConfigError` unless ``start``, on the unconstrained space of the prior, is finite."""
    if not bool(start.isfinite().all()):
        raise ConfigError(
            f"{site.name!r} starts outside the support of its prior {type(base_distribution(prior)).__name__}: a "
            f"{site.part.value} is initialised with numbers of both signs. Take a prior on all reals, such as Normal."
        )


def require_deviation(init_scale: object) -> None:
    """Raise :class:`ConfigError` unless ``init_scale`` is one positive and finite number."""
    if not isinstance(init_scale, int | float) or not 0.0 < init_scale < math.inf:
        raise ConfigError(f"init_scale is a standard deviation and must be positive and finite; got {init_scale}.")


def require_log(positive_mean: bool, site: Site, start: Tensor) -> None:
    """Raise :class:`ConfigError` if log μ is to be learned and ``start``, the first μ, has none."""
    if positive_mean and not bool((start > 0).all()):
        raise ConfigError(
            f"positive_mean=True trains log μ, but the start of {site.name!r} has entries ≤ 0. It is meant for "
            "DiagonalCore, whose diagonal starts at singular values."
        )


def check_log_variance(init_log_variance: float, lowest: float, highest: float) -> None:
    """Raise :class:`ConfigError` unless ``init_log_variance`` lies between the ends where training clamps it."""
    if not lowest <= init_log_variance <= highest:
        raise ConfigError(
            f"init_log_variance is the natural log of a variance in [{lowest:g}, {highest:g}]; got "
            f"{init_log_variance}. The paper starts at -8, its second version at -12."
        )


def require_untraced() -> None:
    """Raise :class:`ConfigError` within a trace, which would score the posterior's mean as a draw of it."""
    if is_traced():
        raise ConfigError(
            "RankWise(local_reparametrisation=True) was traced in training mode, as Pyro's SVI and its ELBOs do. "
            "They would take the posterior's mean for a draw and run the model again without noise. Train with "
            "bayes_adapters.ELBO or fit(), build the guide with local_reparametrisation=False, or call "
            "guide.eval() to look at weight draws."
        )


def check_noise(scale: float) -> None:
    """Raise :class:`ConfigError` unless σ_q is positive and finite."""
    if not 0.0 < scale < math.inf:
        raise ConfigError(f"scale is σ_q, a standard deviation, and must be positive and finite; got {scale}.")


def require_orthogonal(path: str, up: Tensor, singular: Tensor) -> None:
    """Raise :class:`ConfigError` unless the columns of B are orthogonal.

    Args:
        path: the layer's.
        up: B, shape (d_out, r).
        singular: the lengths of its columns, shape (r,).
    """
    product = up.mT @ up
    if float((product - product.diagonal().diag()).abs().max()) > 1e-4 * float(singular.max()) ** 2:
        raise ConfigError(
            f"The columns of B in the layer {path!r} are not orthogonal, so their lengths are not its "
            "singular values. Rotate the adapter first "
            "(bayes_adapters.surgery.training_free.rotate), or let bayesianise do all of it."
        )
