"""Plain LoRA out of a Bayesian adapter: the posterior's means, and nothing random."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayes_adapters import registry
from bayes_adapters.adapters._lora_checks import require_lora
from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.devices import generators_kept
from bayes_adapters.files.marks import Marks
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_draw, weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Part
from bayes_adapters.surgery._checks import (
    require_any_rank,
    require_copy,
    require_draw,
    require_plain_model,
    require_weights,
)


@torch.no_grad()
def to_lora(
    model: AdapterModel,
    guide: AdapterGuide,
    backbone: nn.Module,
    *,
    drop_zero: bool = False,
    draw: int | None = None,
    seed: int = 0,
) -> AdapterModel:
    """Build the plain LoRA ``h = W₀ x + (α/r) B' A' x`` whose output is the model's at its mean, or at one draw.

    B' = E_q[B] and A' = E_q[E] E_q[A]; what is not random is copied. With ``draw=s`` the drawn weights stand in the
    place of the means, bit for bit those of draw s of ``predict(…, return_samples=True, seed=seed)``; the predictions
    are that draw's up to rounding; :func:`bayes_adapters.surgery.draw_folders.draws_to_peft` writes many of them as
    folders of PEFT, without a second backbone. The scale stays α/r with the model's first r, also where pruning left
    fewer ranks; layers without any are left out.

    Args:
        model: its random parts, if any, are weights: A, B, the core or its diagonal, one draw for the whole data set.
        guide: made for it.
        backbone: a second copy of the same frozen backbone, without adapters; the new model is built on it.
        draw: s, the number of a draw, from 0; None takes the means.
        seed: of the draw, as in :func:`bayes_adapters.predict`.
        drop_zero: take out ranks whose row of A' or column of B' is exactly zero, which changes no output.

    Returns:
        A :class:`bayes_adapters.models.LoRA` in eval mode, on the backbone's device, with copies of head and
        likelihood. Its guide is ``Delta(lora)``.

    Raises:
        ConfigError: the mean depends on the input (local sites) or is a mask; the model's head is random; a layer
            reads other modalities, or has a formula of its own and does not say which LoRA it equals (``as_lora``); the
            backbone is another one or has adapters; no rank is left in any layer.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> net = BertModel(tiny)
    >>> second = copy.deepcopy(net)
    >>> model = StochasticDown(net, Bernoulli(), num_data=100, rank=2)
    >>> to_lora(model, MeanField(model), second).sites
    []
    """
    require_pair(model, guide)
    require_draw(draw, seed)
    require_weights(model.sites)
    require_plain_model(model)
    for layer in adapted_layers(model.backbone).values():
        require_lora(layer)
    require_copy(backbone, model.backbone)
    values = weight_mean(model, guide) if draw is None else weight_draw(model, guide, draw, seed=seed)
    factors = lora_factors(model, values)
    if drop_zero:
        factors = {path: _without_zeros(*pair) for path, pair in factors.items()}
    factors = {path: pair for path, pair in factors.items() if len(pair[0])}
    require_any_rank(factors)
    with generators_kept(backbone):  # initial values are drawn and then overwritten
        lora: AdapterModel = registry.find("model", "lora")(
            backbone,
            copy.deepcopy(model.likelihood),
            targets=Targets("|".join(re.escape(path) for path in factors)),
            rank=model.rank,
            alpha=model.alpha,
            ranks={path: len(pair[0]) for path, pair in factors.items()},
            dropout=model.dropout,
            **({"pooling": model.pooling} if type(model.head) is LinearHead else {"head": model.head.fresh()}),
        )
    for path, layer in adapted_layers(backbone).items():
        for parameter, value in zip((layer.lora_A, layer.lora_B), factors[path], strict=True):
            if parameter is not None:
                parameter.data = value.detach().to(parameter.device, copy=True).contiguous()
    lora.head = copy.deepcopy(model.head).to(next(lora.head.parameters()).device)
    Marks.of(model).put_on(lora)
    return lora.eval()


def lora_factors(model: AdapterModel, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layer path → A' (r, d_in) and B' (d_out, r), from site → value."""
    parts: dict[str, dict[Part, Tensor]] = {path: {} for path in model.layers}
    for site in model.sites:
        for value, path in zip(values[site.name], site.layers, strict=True):
            if path in parts:  # a head's site is of no layer
                parts[path][site.part] = value
    return {path: as_lora(layer, parts[path]) for path, layer in adapted_layers(model.backbone).items()}


def _without_zeros(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    keep = (down != 0).any(1) & (up != 0).any(0)
    return down[keep], up[:, keep]
