"""Likelihoods: how outputs of the head become a distribution of the target, and how posterior draws are averaged.

Every likelihood has the same members: ``num_outputs`` (what the head must produce), ``distribution`` (outputs →
p(y | draw)), ``check`` (targets), ``summarise`` (sums over draws that can be added up chunk by chunk) and
``predict`` (sums → :class:`Prediction`). Total = aleatoric + epistemic, in nats.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions import IGNORED, TokenLabels
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.prediction import Prediction as Prediction


class Likelihood(nn.Module):
    """What a likelihood must provide; see the module's docstring."""

    name: ClassVar[str]
    """The registered name, as written into saved adapters."""
    num_outputs: int
    per_token: ClassVar[bool] = False
    """Whether there is one target a token, rather than one an example."""

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        """Return p(y | draw) with batch shape (*S, B)."""
        raise NotImplementedError

    def of_tokens(self, outputs: Float[Tensor, "*S B T K"], real: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        """Return p(y | draw) with batch shape (*S, B) and event shape (T,), padding left out; if ``per_token``."""
        raise NotImplementedError

    def check(self, targets: Tensor) -> None:
        """Raise :class:`DataError` if a target lies outside the support."""
        raise NotImplementedError

    def summarise(self, fn: TorchDistributionMixin) -> dict[str, Float[Tensor, "B ..."]]:
        """Sum over draws what :meth:`predict` needs; ``fn`` has batch shape (S, B)."""
        raise NotImplementedError

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        """Average the sums of ``num_samples`` draws."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {}


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


def _column(targets: Tensor) -> str:
    return " Take targets.squeeze(1)." if targets.dim() == 2 and targets.shape[1] == 1 else ""


def _integers(targets: Tensor, classes: int) -> None:
    if targets.dim() != 1 or targets.is_floating_point():
        fix = " One-hot rows become class numbers by targets.argmax(1)." if targets.dim() == 2 else ""
        if targets.dim() == 1:
            fix = " Class numbers: targets.long(). Real numbers need the likelihood Gaussian."
        raise DataError(
            f"Class targets must be int64 of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets) or fix}"
        )
    bad = (targets < 0) | (targets >= classes)
    if bool(bad.any()):
        raise DataError(
            f"Targets must be class numbers 0 … {classes - 1}; got {targets[bad][:5].tolist()} at rows "
            f"{bad.nonzero().flatten()[:5].tolist()}. Is num_classes too small, or are labels counted from 1?"
        )


def _reals(targets: Tensor) -> None:
    if targets.dim() != 1 or not targets.is_floating_point():
        fix = " Take targets.float(); for class numbers the likelihood is Categorical." if targets.dim() == 1 else ""
        raise DataError(
            f"Targets must be floating point of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets) or fix}"
        )
    bad = ~torch.isfinite(targets)
    if bool(bad.any()):
        raise DataError(
            f"Targets at rows {bad.nonzero().flatten()[:5].tolist()} are NaN or infinite. Drop or repair these "
            "examples."
        )


class _ClassLikelihood(Likelihood):
    """What likelihoods over C classes share: C itself, and how draws of class probabilities are averaged."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 2:
            raise ConfigError(f"num_classes must be a whole number of at least 2; got {num_classes}.")
        self.num_outputs = num_classes

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        probs = fn.probs.double()
        return {"mean": probs.sum(0), "entropy": _entropy(probs).sum(0)}

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        mean, aleatoric = sums["mean"] / num_samples, sums["entropy"] / num_samples
        return _classes(mean, _entropy(mean), aleatoric, num_samples)

    def config(self) -> dict[str, Any]:
        return {"num_classes": self.num_outputs}


class Categorical(_ClassLikelihood):
    """``y ~ Categorical(softmax(f))`` with targets int64 in 0 … C-1.

    Args:
        num_classes: C ≥ 2.
    """

    name: ClassVar[str] = "categorical"

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return dist.Categorical(logits=outputs.float())

    def check(self, targets: Tensor) -> None:
        _integers(targets, self.num_outputs)


class Bernoulli(Likelihood):
    """``y ~ Bernoulli(sigmoid(f))`` with targets 0. or 1. (or probabilities in between, as soft labels)."""

    name: ClassVar[str] = "bernoulli"
    num_outputs = 1

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=outputs[..., 0].float(), validate_args=False)

    def check(self, targets: Tensor) -> None:
        _reals(targets)
        bad = (targets < 0) | (targets > 1)
        if bool(bad.any()):
            raise DataError(
                f"Bernoulli targets must lie in [0, 1]; got {targets[bad][:5].tolist()}. Are labels coded -1/1 or 1/2?"
            )

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        logits = fn.logits.double()
        both = torch.stack([torch.sigmoid(logits), torch.sigmoid(-logits)], -1)
        return {"mean": both[..., 0].sum(0), "entropy": _entropy(both).sum(0)}

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        mean, aleatoric = sums["mean"] / num_samples, sums["entropy"] / num_samples
        return _classes(mean, _entropy(torch.stack([mean, 1 - mean], -1)), aleatoric, num_samples)


def _classes(mean: Tensor, total: Tensor, aleatoric: Tensor, num_samples: int) -> Prediction:
    # Jensen: total >= aleatoric. The sums are float64, so rounding makes a difference of about 1e-15 at most.
    epistemic = _above_rounding(total - aleatoric)
    parts = [t.float() for t in (mean, total, total - epistemic, epistemic)]
    return Prediction(parts[0], parts[1], parts[2], parts[3], num_samples)


def _above_rounding(epistemic: Tensor) -> Tensor:
    """Set what lies below 1e-12 nats to 0: it is rounding, and would rank examples by noise."""
    return epistemic.where(epistemic > 1e-12, 0.0)


class _NormalLikelihood(Likelihood):
    """What both Gaussian likelihoods share.

    The averaged predictive is a mixture of S Gaussians without a closed-form entropy; total is the entropy
    ``½ log(2πe v)`` of the Gaussian with the mixture's variance v, an upper bound that is exact for S = 1.
    """

    def check(self, targets: Tensor) -> None:
        _reals(targets)

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        entropy = fn.scale.double().log() + 0.5 * math.log(2 * math.pi * math.e)
        loc, variance = fn.loc.double(), fn.scale.double().square()
        return {
            "mean": loc.sum(0),
            "square": loc.square().sum(0),
            "variance": variance.sum(0),
            "entropy": entropy.sum(0),
        }

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        mean = sums["mean"] / num_samples
        spread = sums["square"] / num_samples - mean.square()
        # A deviation below the resolution of a float32 mean is rounding, in its sum of squares too.
        spread = spread.masked_fill(spread <= torch.finfo(torch.float32).eps ** 2 * mean.square(), 0.0)
        variance = spread + sums["variance"] / num_samples
        total = 0.5 * (2 * math.pi * math.e * variance).log()
        epistemic = _above_rounding(total - sums["entropy"] / num_samples)
        parts = [t.float() for t in (mean, total, total - epistemic, epistemic)]
        return Prediction(parts[0], parts[1], parts[2], parts[3], num_samples, variance=variance.float())


class Gaussian(_NormalLikelihood):
    """``y ~ N(f, σ²)`` with one learned σ for all examples.

    Args:
        init_log_scale: natural log of the initial standard deviation.
    """

    name: ClassVar[str] = "gaussian"
    num_outputs = 1

    def __init__(self, init_log_scale: float = 0.0) -> None:
        super().__init__()
        if not math.isfinite(init_log_scale):
            raise ConfigError(
                f"init_log_scale is the log of a standard deviation and must be finite; got {init_log_scale}."
            )
        self.init_log_scale = init_log_scale
        self.log_scale = nn.Parameter(torch.tensor(float(init_log_scale)))

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        loc = outputs[..., 0].float()
        return dist.Normal(loc, self.log_scale.exp().expand_as(loc))

    def config(self) -> dict[str, Any]:
        return {"init_log_scale": self.init_log_scale}


class HeteroscedasticGaussian(_NormalLikelihood):
    """``y ~ N(f₀, softplus(f₁ + softplus⁻¹(1))² )``: the head predicts mean and scale; σ = 1 at f₁ = 0.

    Args:
        min_scale: added to σ, in units of the target; keeps the density finite.
    """

    name: ClassVar[str] = "heteroscedastic_gaussian"
    num_outputs = 2

    def __init__(self, min_scale: float = 1e-4) -> None:
        super().__init__()
        if not 0.0 <= min_scale < math.inf:
            raise ConfigError(
                f"min_scale is added to a standard deviation and must be finite and not negative; got {min_scale}."
            )
        self.min_scale = min_scale

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        outputs = outputs.float()
        scale = nn.functional.softplus(outputs[..., 1] + math.log(math.e - 1)) + self.min_scale
        return dist.Normal(outputs[..., 0], scale)

    def config(self) -> dict[str, Any]:
        return {"min_scale": self.min_scale}


class Tagging(_ClassLikelihood):
    """``y_t ~ Categorical(softmax(f_t))`` for every real token t, with targets int64 of shape (B, T).

    Density: ``log p(y | x, E) = Σ_t log softmax(f_t)[y_t]`` over real tokens whose target is not −100; the nll of an
    example is that **sum**, not its mean: an example is one datum of the ELBO, and its labels are its evidence. At
    padding a target may be any class, or −100. A draw of the cores explains all labels of an example together, so
    ``log_density`` is joint, while probabilities (B, T, C) and entropies (B, T), zero at padding, are each token's own.

    Args:
        num_classes: C ≥ 2.
    """

    name: ClassVar[str] = "tagging"
    per_token: ClassVar[bool] = True

    def distribution(self, outputs: Tensor) -> TorchDistributionMixin:
        return self.of_tokens(outputs, None)

    def of_tokens(self, outputs: Tensor, real: Tensor | None) -> TorchDistributionMixin:
        return TokenLabels(outputs.float(), real, validate_args=False)

    def check(self, targets: Tensor) -> None:
        if targets.dim() != 2 or targets.is_floating_point():
            raise DataError(
                f"Tagging needs one target a token, int64 of shape (B, T); got {targets.dtype} of shape "
                f"{tuple(targets.shape)}. For one class an example take Categorical."
            )
        bad = (targets != IGNORED) & ((targets < 0) | (targets >= self.num_outputs))
        if bool(bad.any()):
            raise DataError(
                f"Targets must be class numbers 0 … {self.num_outputs - 1}, or {IGNORED} where a token has no label; "
                f"got {targets[bad][:5].tolist()} at (row, token) {bad.nonzero()[:5].tolist()}. Is num_classes too "
                "small, or are labels counted from 1?"
            )
