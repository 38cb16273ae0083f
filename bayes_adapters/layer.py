"""The adapted linear layer, and how it gets into a backbone and out again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.errors import ConfigError
from bayes_adapters.sites import CoreSite, Granularity, current_pass
from bayes_adapters.targets import dimensions


class AdaptedLinear(nn.Module):
    """A frozen linear layer plus a low-rank update whose core is fixed or random.

    Formula: ``h = base_layer(x) + (alpha / r) · B E A dropout(x)``. The base weight is never read, so any layer that
    maps (…, d_in) to (…, d_out) can be a base. ``A`` is Kaiming-uniform, ``B`` zero: at construction h = base_layer(x).

    Args:
        base_layer: ``torch.nn.Linear`` or transformers' ``Conv1D``; it is frozen.
        rank: r ≥ 1.
        alpha: the scale's numerator.
        path: the base layer's path in the backbone, which names the layer in errors and finds its global core.
        dropout: probability of zeroing an entry of the adapter's input while training.
        site: the core's sample site; None means E = I (plain LoRA).
    """

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        alpha: float,
        *,
        path: str = "",
        dropout: float = 0.0,
        site: CoreSite | None = None,
    ) -> None:
        super().__init__()
        size = dimensions(base_layer)
        if size is None:
            raise ConfigError(
                f"Cannot adapt a {type(base_layer).__name__}; allowed: torch.nn.Linear, transformers Conv1D."
            )
        check_options(rank, alpha, dropout)
        self.base_layer = base_layer.requires_grad_(False)
        device = next(base_layer.parameters()).device
        self.lora_A = nn.Parameter(torch.empty(rank, size[0], device=device))
        self.lora_B = nn.Parameter(torch.zeros(size[1], rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.path = path
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.site = site
        self.enabled = True

    def forward(self, x: Float[Tensor, "rows *T d_in"]) -> Float[Tensor, "rows *T d_out"]:
        """Return the adapted layer's output, in the base layer's dtype."""
        out = self.base_layer(x)
        if not self.enabled:
            return out
        z = F.linear(self.dropout(x).to(self.lora_A.dtype), self.lora_A)
        delta = F.linear(self._apply_core(z).to(self.lora_B.dtype), self.lora_B)
        return out + (self.scaling * delta).to(out.dtype)

    def _apply_core(self, z: Tensor) -> Tensor:
        if self.site is None:
            return z
        forward_pass = current_pass()
        if forward_pass is None:
            raise ConfigError(
                f"The adapted layer {self.path!r} has a random core, which only exists inside a model. Call the "
                "model, the guide or predict(); for the frozen backbone alone use `with model.adapters_disabled():`. "
                "During loss.backward() the cause is gradient checkpointing, which runs layers again on their own: "
                "switch it off on the backbone."
            )
        if self.site.granularity is Granularity.GLOBAL:
            return forward_pass.global_core(self.path, z)
        return forward_pass.draw(self.site, z)

    def extra_repr(self) -> str:
        """Show rank, scaling and core."""
        core = "I" if self.site is None else self.site.granularity.value
        return f"rank={self.lora_A.shape[0]}, scaling={self.scaling:g}, core={core}"


def check_options(rank: int, alpha: float, dropout: float) -> None:
    """Raise :class:`ConfigError` if an adapter cannot have these options."""
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank must be a whole number of at least 1; got {rank}.")
    if not 0.0 < alpha < math.inf:
        raise ConfigError(f"alpha must be positive and finite, for example 2 * rank; got {alpha}.")
    if not 0.0 <= dropout < 1.0:
        raise ConfigError(f"dropout must lie in [0, 1); got {dropout}.")


def install(
    backbone: nn.Module,
    paths: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    sites: Mapping[str, CoreSite] | None = None,
) -> dict[str, AdaptedLinear]:
    """Freeze ``backbone`` and put an :class:`AdaptedLinear` in the place of each layer in ``paths``.

    Args:
        backbone: changed in place; :func:`remove` restores it bit for bit.
        paths: module paths, as :func:`bayes_adapters.targets.select` lists them.
        rank: r of every adapter.
        alpha: the scale's numerator; ``h = base(x) + alpha / rank · B E A x``.
        dropout: dropout probability on the adapters' input.
        sites: the core's sample site for each path; a path without one has E = I.

    Returns:
        Path → adapted layer, in the order of ``paths``.

    Raises:
        ConfigError: the backbone already holds adapters, or an option is out of range; nothing was changed.
    """
    require_unadapted(backbone)
    check_options(rank, alpha, dropout)
    backbone.requires_grad_(False)
    layers: dict[str, AdaptedLinear] = {}
    for path in paths:
        site = None if sites is None else sites.get(path)
        base = backbone.get_submodule(path)
        layers[path] = AdaptedLinear(base, rank, alpha, path=path, dropout=dropout, site=site)
        backbone.set_submodule(path, layers[path])
        layers[path].train(base.training)
    return layers


def remove(backbone: nn.Module) -> nn.Module:
    """Put every base layer back and return the backbone, bit-identical to what it was before :func:`install`."""
    for path, layer in adapted_layers(backbone).items():
        backbone.set_submodule(path, layer.base_layer)
    return backbone


def require_unadapted(backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` if ``backbone`` holds adapters."""
    if adapted_layers(backbone):
        raise ConfigError(
            "This backbone already has adapters. Remove them first with bayes_adapters.remove(backbone), or load a "
            "second backbone."
        )


@contextmanager
def restored_on_error(backbone: nn.Module) -> Iterator[None]:
    """If the context ends with an error, take out the adapters it installed and undo the freezing."""
    before = set(adapted_layers(backbone))
    flags = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    try:
        yield
    except BaseException:
        for path, layer in adapted_layers(backbone).items():
            if path not in before:
                backbone.set_submodule(path, layer.base_layer)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise


def adapted_layers(backbone: nn.Module) -> dict[str, AdaptedLinear]:
    """Return path → adapted layer for every adapter in ``backbone``."""
    return {path: module for path, module in backbone.named_modules() if isinstance(module, AdaptedLinear)}


@contextmanager
def adapters_disabled(backbone: nn.Module) -> Iterator[nn.Module]:
    """Within the context the backbone computes what it computed before adapters were installed."""
    before = {layer: layer.enabled for layer in adapted_layers(backbone).values()}
    for layer in before:
        layer.enabled = False
    try:
        yield backbone
    finally:
        for layer, enabled in before.items():
            layer.enabled = enabled
