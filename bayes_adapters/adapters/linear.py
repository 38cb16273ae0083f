"""The adapted linear layer: ``h = W₀ x + s · B E (g ⊙ A (m ⊙ x))``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.adapters._base_weight import BaseWeight
from bayes_adapters.adapters._checks import (
    check_options,
    ends_gradients,
    merged_meanwhile,
    outside_model,
    returns_several,
)
from bayes_adapters.adapters.forward_pass import ForwardPass, current_pass
from bayes_adapters.adapters.recomputation import run_again
from bayes_adapters.adapters.targets import linear_size
from bayes_adapters.sites import Granularity, Part, Site

Times = Callable[[Part, Tensor], Tensor]
"""(part, x) → what the part makes of x: ``W x``, or ``w ⊙ x``; x itself where the layer has no such part."""


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus a low-rank update, any part of which may be random.

    Formula: ``h = base_layer(x) + (alpha / r) · B E (g ⊙ A (m ⊙ dropout(x))) / E[m]``. The base weight is never read,
    so any layer that maps (…, d_in) to (…, d_out) can be a base. What is not random: A is a parameter, Kaiming-uniform;
    B is a parameter, zero, so that at construction h = base_layer(x); E = I; masks m and gates g are 1. A random part
    is drawn from its site while the model runs, and the layer holds no parameter for it.

    Another structure is a subclass: it says in ``learned`` which parts it has, in :meth:`initial` where they start and
    in :meth:`update` its formula, and in :meth:`as_lora` which LoRA it equals, if it equals any.

    Args:
        base_layer: ``torch.nn.Linear`` or transformers' ``Conv1D``; it is frozen.
        rank: r ≥ 1.
        alpha: the scale's numerator.
        kept: ranks that pruning has left, 0 … r; the scale stays ``alpha / rank``. None means all. A layer without any
            is its base layer.
        path: the base layer's path in the backbone, which names the layer in errors and finds its weights.
        dropout: probability of zeroing an entry of the adapter's input while training.
        sites: the sample site of each random part; none means plain LoRA.

    >>> layer = AdaptedLinear(nn.Linear(3, 4), rank=2, alpha=4.0)
    >>> x = torch.ones(1, 3)
    >>> torch.equal(layer(x), layer.base_layer(x)), layer
    (True, AdaptedLinear(
      rank=2, scaling=2, core=I
      (base_layer): Linear(in_features=3, out_features=4, bias=True)
      (dropout): Dropout(p=0.0, inplace=False)
      (inter): ModuleDict()
    ))
    """

    learned: ClassVar[tuple[Part, ...]] = (Part.A, Part.B)
    """The parts that are a parameter, called ``lora_<part>``, where they are not random."""
    lora_A: nn.Parameter | None  # noqa: N815 -- the field's name, and that of saved tensors
    lora_B: nn.Parameter | None  # noqa: N815

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
    ) -> None:
        super().__init__()
        size = linear_size(base_layer)
        check_options(rank, alpha, dropout)
        self.base_layer = base_layer.requires_grad_(False)
        self.path, self.rank = path, rank if kept is None else kept
        device = next(base_layer.parameters()).device
        self.sites = {site.part: site for site in sites}
        for part in dict.fromkeys((Part.A, Part.B, *self.learned)):
            own = part in self.learned and part not in self.sites
            start = self.initial(part, part.event(self.rank, *size)).to(device) if own else None
            self.register_parameter(f"lora_{part.name}", None if start is None else nn.Parameter(start))
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.inter = nn.ModuleDict()
        self.enabled = True
        self.merged = False

    def initial(self, part: Part, shape: tuple[int, ...]) -> Tensor:
        """Return where a parameter starts: A Kaiming-uniform, everything else at zero."""
        return kaiming(*shape) if part == Part.A else torch.zeros(shape)

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

        A row is an example, or one of its windows: see :mod:`bayes_adapters.adapters.rows`.
        """
        out = self.base_layer(x)
        if not self.enabled:
            if self.merged and (self.training or (torch.is_grad_enabled() and current_pass() is not None)):
                raise merged_meanwhile(self.path, "trained")
            return out
        if not isinstance(out, Tensor):
            raise returns_several(self.path, type(self.base_layer).__name__, type(out).__name__)
        if x.requires_grad and not out.requires_grad and torch.is_grad_enabled():
            raise ends_gradients(self.path, type(self.base_layer).__name__)
        x = self.dropout(x)
        if self.rank > 0:
            out = out + (self.scaling * self._in_pass(x)).to(out.dtype)
        for path in self.inter.values():
            out = out + path(x).to(out.dtype)
        return out

    def update(self, x: Float[Tensor, "rows *T d_in"], times: Times) -> Float[Tensor, "rows *T d_out"]:
        """Return ``B E (g ⊙ A (m ⊙ x)) / E[m]``; ``times`` applies one part, a parameter or a draw of this pass."""
        x = times(Part.MASK, x).to(x.dtype)
        z = times(Part.GATE, times(Part.A, x))
        z = times(Part.DIAGONAL, times(Part.CORE, z))
        return times(Part.B, z)

    def as_lora(self, values: Mapping[Part, Tensor]) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """Return (A', B') of the plain LoRA of this scale that computes the same: ``A' = E diag(g) A``, ``B' = B``.

        Args:
            values: part → value, for the random ones.

        A subclass with another formula overrides this one too, or is refused wherever a plain LoRA is needed.
        """
        down, up = (values[part] if part in values else self.get_parameter(f"lora_{part.name}") for part in _FACTORS)
        if Part.GATE in values:
            down = values[Part.GATE][:, None] * down
        if Part.CORE in values:
            down = values[Part.CORE] @ down
        if Part.DIAGONAL in values:
            down = values[Part.DIAGONAL][:, None] * down
        return down, up

    def _in_pass(self, x: Tensor) -> Tensor:
        """The update, in the pass that draws the random parts: examples first, whatever the backbone's order."""
        if not self.sites:
            return self.update(x, partial(self._times, None))
        forward_pass = current_pass()
        if forward_pass is None:
            raise outside_model(self.path, [part.name for part in self.sites])
        times = partial(self._times, forward_pass)
        if forward_pass.tokens_first(self.path, self.sites.values(), x):
            return self.update(x.transpose(0, 1), times).transpose(0, 1)
        return self.update(x, times)

    def _times(self, forward_pass: ForwardPass | None, part: Part, x: Tensor) -> Tensor:
        site = self.sites.get(part)
        if site is None or forward_pass is None:
            parameter = self._parameters.get(f"lora_{part.name}")
            if parameter is None:
                return x
            return x * parameter if part.diagonal else F.linear(x.to(parameter.dtype), parameter)
        if site.granularity is Granularity.GLOBAL:
            return forward_pass.weights[part, self.path].times(x)
        drawn = partial(self._drawn, site)
        return run_again(drawn, x) if forward_pass.recomputes(site) else drawn(x)

    def _drawn(self, site: Site, x: Tensor) -> Tensor:
        """What the draw of a local site makes of x, in the pass that is running."""
        forward_pass, part = current_pass(), site.part
        if forward_pass is None:
            raise outside_model(self.path, [part.name])
        value = forward_pass.draw(site, x)  # (S·B, tokens or 1, *event)
        flat = x.reshape(value.shape[0], -1, x.shape[-1])
        if part.diagonal:
            return (flat * value).reshape(x.shape)
        return (value * flat[..., None, :]).sum(-1).reshape(*x.shape[:-1], value.shape[-2])

    def extra_repr(self) -> str:
        """Show rank, scaling and what is random."""
        random = ", ".join(f"{part.name} a {site.granularity.value}" for part, site in self.sites.items())
        core = "" if {Part.CORE, Part.DIAGONAL} & set(self.sites) else ", core=I"
        return f"rank={self.rank}, scaling={self.scaling:g}{core}{', random: ' + random if random else ''}"


_FACTORS = (Part.A, Part.B)


def kaiming(rank: int, d_in: int) -> Float[Tensor, "r d_in"]:
    """Return a fresh A: Kaiming-uniform with a = √5, that is U(±1/√d_in), from torch's generator."""
    empty = torch.empty(rank, d_in)
    return nn.init.kaiming_uniform_(empty, a=math.sqrt(5)) if rank else empty
