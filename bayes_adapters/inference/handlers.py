"""Effect handlers: the KL weight of training, and repeatable draws at prediction."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Int
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

from bayes_adapters.distributions import (
    ShrunkNormal,
    base_distribution,
    device_of,
    from_uniforms,
    inverse_cdf,
    mean_of,
)
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.inference._draw_checks import require_plates, require_shape, unsampled
from bayes_adapters.inference.keyed_noise import keyed_uniform as keyed_uniform
from bayes_adapters.priors import HYPER
from bayes_adapters.sites import OF_WEIGHTS, SITE, Granularity, SiteCall

_JOINT = (MultivariateNormal, LowRankMultivariateNormal, ShrunkNormal)
"""Families with draws that are a function of uniforms though entries depend on each other."""


class KLMode(StrEnum):
    """How the KL of local cores is normalised before it is weighted."""

    FULL = "full"
    """The ELBO's: summed over layers and real tokens of an example."""
    PER_TOKEN_MEAN = "per_token_mean"
    """Divided by (layers × real tokens), so that the weight does not depend on length or depth. Local cores only."""


class KLWeight(Messenger):
    """Multiply the scale of every core site and of every hyper-parameter of a prior, and of nothing else, by a weight.

    ``full``: scale ← w · scale. ``per_token_mean``: scale ← w / (L · n_b) · scale for local sites of example b with n_b
    real tokens at L core sites; global cores keep w. Works around any ELBO with a guide of
    this library: ``with KLWeight(1e-3): svi.step(batch)``. The sites of Pyro's autoguides are no core sites.

    Args:
        weight: w ≥ 0; 1 is the ELBO.
        mode: see :class:`KLMode`.

    Raises:
        ConfigError: the weight is negative or NaN, or the mode unknown.

    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.optim import ClippedAdam
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Batch, Bernoulli
    >>> from bayes_adapters.systems import build
    >>> model, guide = build("blob", BertModel(tiny), Bernoulli(), num_data=8, rank=2)
    >>> batch = Batch({"input_ids": torch.randint(20, (8, 5))}, targets=torch.ones(8))
    >>> svi = SVI(model, guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())
    >>> with KLWeight(1e-3):
    ...     loss = svi.step(batch)
    >>> loss > 0
    True
    """

    def __init__(self, weight: float, mode: KLMode | str = KLMode.FULL) -> None:
        super().__init__()
        if not weight >= 0.0:
            raise ConfigError(f"A KL weight must be at least 0; got {weight}.")
        self.weight, self.mode = weight, choice(KLMode, "kl_mode", mode)

    def _pyro_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if call is None and HYPER not in msg["infer"]:
            return
        scale: Any = self.weight
        if call is not None and self.mode is KLMode.PER_TOKEN_MEAN and call.site.granularity is not Granularity.GLOBAL:
            scale = self.weight / (call.num_sites * call.token_counts())
        msg["scale"] = msg["scale"] * scale


class PosteriorMean(Messenger):
    """Set every core to the mean of its distribution: one deterministic pass.

    Raises:
        ConfigError: a distribution's mean is not known, as that of a transformed one is not.
    """

    def _pyro_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if HYPER in msg["infer"] and not msg["is_observed"] and msg["value"] is None:
            joint = msg["infer"].get("is_auxiliary")
            msg["value"] = (mean_of if joint else _centre)(msg["fn"], msg["name"])
        if call is None or msg["is_observed"]:
            return
        call.scale = call.moments = None  # neither noise at the outputs nor their variance
        if msg["value"] is None:
            msg["value"] = mean_of(msg["fn"], msg["name"])


def _centre(fn: Any, name: str) -> Tensor:
    """The mean of a hyper-parameter, or, of one mapped from the reals, the image of its mean there: the median."""
    base = base_distribution(fn)
    if not isinstance(base, torch.distributions.TransformedDistribution):
        return mean_of(fn, name)
    value = base.base_dist.mean
    for transform in base.transforms:
        value = transform(value)
    return value.expand(fn.shape())


class UnreadOutcome(Messenger):
    """Give an unobserved ``obs`` a placeholder, so that prediction draws nothing it does not use."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == "obs" and not msg["is_observed"] and msg["value"] is None:
            msg["value"] = torch.zeros(msg["fn"].shape(), device=device_of(msg["fn"]))


class OwnSites(Messenger):
    """Draw what a model samples besides its adapters' sites, so that this noise, too, can be repeated.

    These are the ``pyro.sample`` statements of a subclass's own code. Noise is a function of (seed, site, sample,
    entry) and, within the plate ``data``, of the example's number.

    Args:
        seed: any integer; None leaves these sites to torch's generator.
        samples: shape (S,), int64: the numbers of the samples in the plate around the model.
        examples: shape (B,), int64: the examples' numbers in their data set.
        mean_only: take the mean of each instead.
        local: shape (S,), int64: the numbers of draws within the plate ``data`` that are not of weights; those of
            ``samples`` unless given.

    Raises:
        ConfigError: a distribution has no inverse CDF, or, with ``mean_only``, no mean; or a plate of the model stands
            to the left of samples and examples.
    """

    def __init__(
        self,
        seed: int | None,
        samples: Int[Tensor, " S"],
        examples: Int[Tensor, " B"],
        mean_only: bool,
        local: Int[Tensor, " S"] | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.samples, self.examples, self.mean_only = seed, samples, examples, mean_only
        self.local = samples if local is None else local

    def _pyro_sample(self, msg: Any) -> None:
        if not is_own(msg) or msg["value"] is not None:
            return
        name, fn = msg["name"], msg["fn"]
        if self.mean_only:
            msg["value"] = _centre(fn, name)
        elif self.seed is not None:
            of_examples = any(frame.name == "data" for frame in msg["cond_indep_stack"])
            samples = self.local if of_examples and OF_WEIGHTS not in msg["infer"] else self.samples
            examples = self.examples if of_examples else self.examples.new_zeros(1)
            msg["value"] = _keyed(fn, name, self.seed, samples, examples)


def is_own(site: Any) -> bool:
    """Whether a sample statement is of a model's own code: no adapter's site, no hyper-parameter, not the outcome."""
    if site["type"] != "sample" or site["is_observed"] or site["name"] == "obs" or site_is_subsample(site):
        return False
    return SITE not in site["infer"] and HYPER not in site["infer"]


def _keyed(fn: Any, name: str, seed: int, samples: Int[Tensor, " S"], examples: Int[Tensor, " B"]) -> Tensor:
    """Draw ``fn``, of batch shape (S, B), B being 1 where all examples share a draw, from keyed uniforms."""
    require_plates(name, tuple(fn.shape()[:2]), (len(samples), len(examples)))
    base, device = base_distribution(fn), device_of(fn)
    if hasattr(base, "numbered"):  # a family that says itself which draw has which number, such as Points
        chosen: Tensor = base.numbered(seed, samples)
        return chosen.reshape(fn.shape())
    return from_uniforms(fn, lambda count: keyed_uniform(seed, name, samples, examples, count, device))


class SubstitutedDraws(Messenger):
    """Set latent sites of a model to draws that are given.

    Args:
        draws: site → values, shape (S, *shape of the site), S being the size of the sample plate around the model.

    Raises:
        ConfigError: an adapter's site has no draws, or draws of another shape.
    """

    def __init__(self, draws: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.draws = draws

    def _pyro_sample(self, msg: Any) -> None:
        name, infer = msg["name"], msg["infer"]
        if msg["is_observed"] or msg["value"] is not None or not (SITE in infer or HYPER in infer or is_own(msg)):
            return
        if name not in self.draws:
            if SITE in infer:
                raise unsampled(name, self.draws)
            return  # no output depends on a hyper-parameter once the adapters' sites are known
        value, shape = self.draws[name], msg["fn"].shape()
        value = value if value.dim() == len(shape) else value.unsqueeze(1)  # the data plate's dimension
        require_shape(name, self.draws[name], value, shape)
        msg["value"] = value


class KeyedDraws(Messenger):
    """Draw cores by inverse CDF from uniforms that are a function of (seed, site, sample, example, token, entry).

    The same sample of the same example has the same noise however examples and samples are batched, padded or ordered,
    and on every device; a token's number counts real tokens only. Global cores depend on (seed, site, sample, entry)
    only: one draw is one function of all inputs.

    Args:
        seed: any integer.
        samples: shape (S,), int64: the numbers of the samples in the plate around the model.
        examples: shape (B,), int64: the examples' numbers in their data set.
        local: shape (S,), int64: the numbers of the samples of local cores; those of ``samples`` unless given. Where
            they differ, samples may share weights and differ in local cores, and the other way round.
    """

    def __init__(
        self,
        seed: int,
        samples: Int[Tensor, " S"],
        examples: Int[Tensor, " B"],
        local: Int[Tensor, " S"] | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.samples, self.examples = seed, samples, examples
        self.local = samples if local is None else local

    def _pyro_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        latent = call is not None or HYPER in msg["infer"]
        if not latent or msg["is_observed"] or msg["value"] is not None:
            return
        if isinstance(base_distribution(msg["fn"]), Delta):
            msg["value"] = msg["fn"].mean
            return
        shape = msg["fn"].shape()
        local = call is not None and call.site.granularity is not Granularity.GLOBAL
        samples = self.local if local else self.samples
        examples = self.examples if local else self.examples.new_zeros(1)
        if call is None:
            msg["value"] = _keyed(msg["fn"], msg["name"], self.seed, samples, examples)
            return
        require_plates(msg["name"], tuple(shape[:2]), (len(samples), len(examples)))
        device = device_of(msg["fn"])
        if isinstance(base_distribution(msg["fn"]), _JOINT) and call.token_mask is None:
            msg["value"] = _keyed(msg["fn"], msg["name"], self.seed, samples, examples)
            return
        entries: int | Tensor = shape[2:].numel()
        if call.token_mask is not None or call.first is not None:
            numbers = _token_numbers(call, shape[2], device)
            each = shape[3:].numel()
            entries = (numbers[..., None] * each + torch.arange(each, device=device)).flatten(1)
        uniform = keyed_uniform(self.seed, msg["name"], samples, examples, entries, device).reshape(shape)
        msg["value"] = inverse_cdf(msg["fn"], uniform)


def _token_numbers(call: SiteCall, tokens: int, device: torch.device) -> Int[Tensor, "n T"]:
    """Each token's number among its example's real ones: left padding, too, must not move the noise."""
    if call.token_mask is None:
        numbers = torch.arange(tokens, device=device)[None]
    else:
        numbers = (call.token_mask.cumsum(-1) - 1).clamp_min(0)
    return numbers if call.first is None else numbers + call.first[:, None]
