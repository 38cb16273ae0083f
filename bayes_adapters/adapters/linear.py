"""The adapted linear layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.adapters._base_weight import BaseWeight
from bayes_adapters.adapters.forward_pass import ForwardPass, Weight, current_pass
from bayes_adapters.adapters.targets import linear_size
from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.sites import Granularity, Part, Site

_Weights = Mapping[tuple[Part, str], Weight]
"""(part, layer path) → global draw; empty for a layer without random parts, which may run outside a model."""


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus a low-rank update, any part of which may be random.

    Formula: ``h = base_layer(x) + (alpha / r) · B E A (m ⊙ dropout(x)) / E[m]``. The base weight is never read, so any
    layer that maps (…, d_in) to (…, d_out) can be a base. What is not random: A is a parameter, Kaiming-uniform; B is a
    parameter, zero, so that at construction h = base_layer(x); E = I; m = 1. A random part is drawn from its site while
    the model runs, and the layer holds no parameter for it.

    Args:
        base_layer: ``torch.nn.Linear`` or transformers' ``Conv1D``; it is frozen.
        rank: r ≥ 1.
        alpha: the scale's numerator.
        kept: ranks that pruning has left, 0 … r; the scale stays ``alpha / rank``. None means all. A layer without any
            is its base layer.
        path: the base layer's path in the backbone, which names the layer in errors and finds its weights.
        dropout: probability of zeroing an entry of the adapter's input while training.
        sites: the sample site of each random part; none means plain LoRA.
        flipout: while training, give each example its own signs of A's deviation from its posterior mean: ``A_b = M +
            (A − M) ∘ s_b r_bᵀ``, s and r of ±1 (Wen et al. 2018, arXiv 1803.04386). Each example's A_b has the same
            distribution as A if that is symmetric about M; examples share one noise matrix but are decorrelated, and
            all tokens of an example see one function.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        alpha: float,
        *,
        kept: int | None = None,
        path: str = "",
        dropout: float = 0.0,
        sites: Sequence[Site] = (),
        flipout: bool = False,
    ) -> None:
        super().__init__()
        size = linear_size(base_layer)
        check_options(rank, alpha, dropout)
        self.base_layer = base_layer.requires_grad_(False)
        self.path, self.rank = path, rank if kept is None else kept
        device = next(base_layer.parameters()).device
        self.sites = {site.part: site for site in sites}
        self.lora_A = None if Part.A in self.sites else nn.Parameter(kaiming(self.rank, size[0]).to(device))
        self.lora_B = None if Part.B in self.sites else nn.Parameter(torch.zeros(size[1], self.rank, device=device))
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.flipout = flipout
        self.inter = nn.ModuleDict()
        self.enabled = True

    @property
    def weight(self) -> Tensor:
        """Dtype, device and shape of the base weight, for blocks that ask; see :class:`BaseWeight`."""
        return BaseWeight.of(self.base_layer.get_parameter("weight"), self.path)

    @property
    def bias(self) -> Tensor | None:
        """The same of the base layer's bias; None where it has none."""
        bias = getattr(self.base_layer, "bias", None)
        return None if bias is None else BaseWeight.of(bias, self.path)

    def forward(self, x: Float[Tensor, "rows *T d_in"]) -> Float[Tensor, "rows *T d_out"]:
        """Return the adapted layer's output, in the base layer's dtype.

        A row is an example, or one of its windows: see :mod:`bayes_adapters.backbones.windows`.
        """
        out = self.base_layer(x)
        if not self.enabled:
            return out
        x = self.dropout(x)
        if self.rank > 0:
            out = out + (self.scaling * self._delta(x)).to(out.dtype)
        for path in self.inter.values():
            out = out + path(x).to(out.dtype)
        return out

    def _delta(self, x: Tensor) -> Tensor:
        if not self.sites:
            return self._up(self._down(x, {}), {})
        forward_pass = self._pass()
        weights, signs = forward_pass.weights, self._flips(forward_pass.weights)
        shared = next(iter(self.sites.values())).granularity is Granularity.GLOBAL
        alone = shared and not signs and forward_pass.rows == forward_pass.batch.size  # one draw for all rows
        if not alone and forward_pass.tokens_first(self.path, x):
            return self._delta(x.transpose(0, 1)).transpose(0, 1)
        forward_pass.windows_at(self.path, x)
        own = [weights.get((part, self.path)) for part in (Part.A, Part.B)]
        if any(weight is not None and weight.scale is not None for weight in own):
            return self._moments(x, weights)
        if shared and not alone:
            forward_pass.require_examples(self.path, x, signs=signs)
        z = self._down(self._mask(x, forward_pass), weights)
        return self._up(self._core(z, forward_pass), weights)

    def _mask(self, x: Tensor, forward_pass: ForwardPass) -> Tensor:
        site = self.sites.get(Part.MASK)
        if site is None:
            return x
        kept = forward_pass.prior.of(site).mean
        if site.granularity is Granularity.GLOBAL:
            mask = forward_pass.weights[Part.MASK, self.path].value / kept[self._place(site)]
            return (x.reshape(*mask.shape[:-2], -1, x.shape[-1]) * mask).reshape(x.shape).to(x.dtype)
        mask = forward_pass.draw(site, x) / kept
        return (x.reshape(mask.shape[0], -1, x.shape[-1]) * mask).reshape(x.shape).to(x.dtype)

    def _down(self, x: Tensor, weights: _Weights) -> Tensor:
        if self.lora_A is not None:
            return F.linear(x.to(self.lora_A.dtype), self.lora_A)
        weight = weights[Part.A, self.path]
        if not self._flips(weights) or weight.mean is None:
            return matmul(x, weight.value)
        signs = [self._signs(x, side) for side in ("in", "out")]
        deviation = matmul(x.to(weight.value.dtype) * signs[0], weight.value - weight.mean)
        return matmul(x, weight.mean) + signs[1] * deviation

    def _flips(self, weights: _Weights) -> bool:
        weight = weights.get((Part.A, self.path))
        return self.flipout and self.training and weight is not None and weight.mean is not None

    def _signs(self, x: Tensor, side: str) -> Tensor:
        """Signs of each example for all its rows, the same where a backbone applies a layer again in a pass."""
        forward_pass = self._pass()
        scratch, key = forward_pass.scratch, f"signs.{self.path}.{side}"
        if key not in scratch:
            shape = (forward_pass.rows, x.shape[-1] if side == "in" else self.rank)
            scratch[key] = 1.0 - 2.0 * torch.randint(0, 2, shape, device=x.device).float()
        signs = scratch[key].repeat_interleave(x.shape[0] // forward_pass.rows, 0)  # windows, or tokens in a row
        return signs.reshape(-1, *[1] * (x.dim() - 2), signs.shape[-1])

    def _core(self, z: Tensor, forward_pass: ForwardPass) -> Tensor:
        for part in (Part.CORE, Part.DIAGONAL):
            site = self.sites.get(part)
            if site is None:
                continue
            if site.granularity is Granularity.GLOBAL:
                value = forward_pass.weights[part, self.path].value
                return matmul(z, value) if part is Part.CORE else _scale(z, value)
            value = forward_pass.draw(site, z)
            flat = z.reshape(value.shape[0], -1, self.rank)
            if part is Part.CORE:
                return (value * flat[..., None, :]).sum(-1).reshape(z.shape)
            return (value * flat).reshape(z.shape)
        return z

    def _up(self, z: Tensor, weights: _Weights) -> Tensor:
        if self.lora_B is not None:
            return F.linear(z.to(self.lora_B.dtype), self.lora_B)
        return matmul(z, weights[Part.B, self.path].value)

    def _moments(self, x: Tensor, weights: _Weights) -> Tensor:
        """Draw ``B A x`` from the Gaussian that has its mean and variance, with noise of its own for every token.

        ``m_s = M_A x``, ``v_s = S_A² x²``, ``mean = M_B m_s``, ``var = (M_B² + S_B²) v_s + S_B² m_s²`` for independent
        Gaussian entries; squares are elementwise. B A x itself is not Gaussian, and one draw of it has correlated
        outputs; neither is true of what this returns.
        """
        (mean_a, variance_a), (mean_b, variance_b) = self._gaussian(Part.A, weights), self._gaussian(Part.B, weights)
        x = x.to(mean_a.dtype)
        inner, spread = F.linear(x, mean_a), F.linear(x.square(), variance_a)
        variance = F.linear(spread, mean_b.square() + variance_b) + F.linear(inner.square(), variance_b)
        mean = F.linear(inner, mean_b)
        # The square root has no slope at 0, where an input is 0 or both scales underflow.
        return mean + torch.randn_like(mean) * variance.clamp_min(1e-20).sqrt()

    def _gaussian(self, part: Part, weights: _Weights) -> tuple[Tensor, Tensor]:
        parameter = self.lora_A if part is Part.A else self.lora_B
        if parameter is not None:
            return parameter, torch.zeros_like(parameter)
        weight = weights[part, self.path]
        if weight.mean is None or weight.scale is None:
            return weight.value, torch.zeros_like(weight.value)
        return weight.mean, weight.scale.square()

    def _place(self, site: Site) -> int:
        return site.layers.index(self.path)

    def _pass(self) -> ForwardPass:
        forward_pass = current_pass()
        if forward_pass is None:
            raise ConfigError(
                f"The adapted layer {self.path!r} has a random {'/'.join(p.value for p in self.sites)}, which only "
                "exists inside a model. Call the model, the guide or predict(); for the frozen backbone alone use "
                "`with model.adapters_disabled():`. During loss.backward() the cause is gradient checkpointing, which "
                "runs layers again on their own: switch it off on the backbone."
            )
        return forward_pass

    def extra_repr(self) -> str:
        """Show rank, scaling and what is random."""
        random = ", ".join(f"{part.value} a {site.granularity.value}" for part, site in self.sites.items())
        core = "" if {Part.CORE, Part.DIAGONAL} & set(self.sites) else ", core=I"
        return f"rank={self.rank}, scaling={self.scaling:g}{core}{', random: ' + random if random else ''}"


def kaiming(rank: int, d_in: int) -> Float[Tensor, "r d_in"]:
    """Return a fresh A: Kaiming-uniform with a = √5, that is U(±1/√d_in), from torch's generator."""
    empty = torch.empty(rank, d_in)
    return nn.init.kaiming_uniform_(empty, a=math.sqrt(5)) if rank else empty


def matmul(x: Float[Tensor, "rows *T k"], weight: Float[Tensor, "*S n k"]) -> Float[Tensor, "rows *T n"]:
    """Return ``x Wᵀ``; with samples of W, the rows of x are S·B in the order [S, B]."""
    samples = weight.reshape(-1, *weight.shape[-2:])
    x = x.to(weight.dtype)
    if samples.shape[0] == 1:
        return F.linear(x, samples[0])
    flat = x.reshape(samples.shape[0], -1, x.shape[-1])
    return torch.matmul(flat, samples.mT).reshape(*x.shape[:-1], weight.shape[-2])


def _scale(z: Tensor, weight: Float[Tensor, "*S r"]) -> Tensor:
    samples = weight.reshape(-1, 1, weight.shape[-1])
    return (z.reshape(samples.shape[0], -1, z.shape[-1]) * samples).reshape(z.shape)


def check_options(rank: int, alpha: float, dropout: float) -> None:
    """Raise :class:`ConfigError` if an adapter cannot have these options."""
    whole_number("rank", rank)
    if not isinstance(alpha, int | float) or not 0.0 < alpha < math.inf:
        raise ConfigError(f"alpha must be positive and finite, for example 2 * rank; got {alpha!r}.")
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must lie in [0, 1); got {dropout!r}.")
