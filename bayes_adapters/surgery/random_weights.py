"""Random weights in the place of trained ones: the model on which a posterior is put after training."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers, remove
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.devices import generators_kept
from bayes_adapters.errors import choice, true_or_false
from bayes_adapters.files.marks import Marks
from bayes_adapters.heads import JointLinear, LinearHead
from bayes_adapters.heads.joint_linear import BIAS, WEIGHT
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.models import StochasticCore, StochasticFactors
from bayes_adapters.sites import Part, Site
from bayes_adapters.surgery._random_weight_checks import (
    read_num_data,
    require_choice,
    require_linear,
    require_lora_model,
    trained_parts,
)
from bayes_adapters.surgery._shared_backbone import shared_copy
from bayes_adapters.surgery.export import lora_factors


class Weights(StrEnum):
    """Which weights of a trained adapter are random afterwards."""

    SITES = "sites"
    """The model's own random sites."""
    FACTORS = "factors"
    """A and B of every layer: r (d_in + d_out) numbers each. Laplace-LoRA's. A factor that was frozen while the other
    was trained stays a point, and frozen."""
    CORE = "core"
    """A core E = I between the trained A and B of every layer: r² numbers each."""


@torch.no_grad()
def random_weights(
    model: AdapterModel,
    guide: AdapterGuide,
    weights: Weights | str = Weights.FACTORS,
    *,
    head: bool = False,
    num_data: int | None = None,
) -> tuple[AdapterModel, dict[str, Tensor]]:
    """Build the model whose adapters have random weights and, at the values returned, the same outputs.

    ``StochasticFactors`` has A ~ N(0, 1) and B ~ N(0, 1) at the trained A' and B' of the plain LoRA that the adapter
    equals; ``StochasticCore`` has these as they are, and a core E ~ N(0, 1) at I. Of a LoRA whose A was frozen in
    training, B alone is random, and the other way round.

    Args:
        model: a LoRA, or another structure that equals one at fixed weights.
        guide: what says where its random weights, if any, are: their means.
        weights: ``"factors"`` or ``"core"``.
        head: whether a :class:`~bayes_adapters.heads.LinearHead` becomes a ``JointLinear``, whose weights are random.
        num_data: N of the new model; None is the model's, or 1 where it has none.

    Returns:
        The model in eval mode, on a copy of the backbone that shares the memory of its frozen weights; and site →
        value, shape ``site.shape``.

    Raises:
        ConfigError: the model equals no plain LoRA, some of its layers have one factor frozen and others not, or its
            head is not linear where ``head`` is asked for.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> lora = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> model, values = random_weights(lora, Delta(lora), "core", head=True)
    >>> {name: tuple(value.shape) for name, value in values.items()}
    {'core.global': (2, 2, 2), 'head.weight': (1, 1, 8), 'head.bias': (1, 1)}
    """
    kind = choice(Weights, "weights", weights)
    true_or_false("head", head)
    require_pair(model, guide)
    require_lora_model(model, kind)
    if head:
        require_linear(model)
    factors = lora_factors(model, weight_mean(model, guide))
    config, backbone = model.config(), remove(shared_copy(model.backbone))
    options: dict[str, Any] = {n: config[n] for n in ("rank", "alpha", "dropout", "ranks") if n in config}
    options["targets"] = Targets("|".join(re.escape(path) for path in factors))
    options["num_data"] = read_num_data(num_data, model) or 1
    options["prior"] = dist.Normal(torch.tensor(0.0), torch.tensor(1.0))
    with generators_kept(backbone):  # initial values are drawn and then overwritten
        options["head"] = JointLinear(model.head.pooling) if head else model.head.fresh()
        if not head and type(model.head) is LinearHead:
            options["pooling"] = options.pop("head").pooling
        likelihood = copy.deepcopy(model.likelihood)
        if kind is Weights.CORE:
            new: AdapterModel = StochasticCore(backbone, likelihood, granularity="global", **options)
        else:
            new = StochasticFactors(backbone, likelihood, factors=trained_parts(model), **options)
    if not head:
        new.head = copy.deepcopy(model.head)
        Marks.of(model).put_on(new)
    frozen = kind is Weights.FACTORS
    for path, layer in adapted_layers(new.backbone).items():
        for part, value in zip((Part.A, Part.B), factors[path], strict=True):
            if part not in layer.sites:  # a point: under a random core to be trained on, beside a random factor not
                setattr(layer, f"lora_{part.name}", nn.Parameter(value.detach().clone(), requires_grad=not frozen))
    values = {site.name: _value(site, factors, model) for site in new.sites}
    return new.eval(), values


def read_weights(model: AdapterModel, weights: Weights | str | None, head: bool) -> Weights:
    """Return which weights become random: by default a model's own sites, or the factors of a model that has none."""
    if weights is None:
        kind = Weights.SITES if model.sites and not head else Weights.FACTORS
    else:
        kind = choice(Weights, "weights", weights)
    require_choice(model, kind, head)
    return kind


def trained_factors(model: AdapterModel, guide: AdapterGuide, *, head: bool) -> dict[str, Tensor]:
    """Return site → value of the model that :func:`random_weights` builds of factors, without building it."""
    require_lora_model(model, Weights.FACTORS)
    values: dict[str, Tensor] = {}
    parts = trained_parts(model)
    for path, factors in lora_factors(model, weight_mean(model, guide)).items():
        pairs = zip((Part.A, Part.B), factors, strict=True)
        values |= {f"{part.name}.{path}": value.detach().float()[None] for part, value in pairs if part.name in parts}
    if head:
        require_linear(model)
        for name in (WEIGHT, BIAS):
            values[name] = model.head.get_parameter(name.removeprefix("head.")).detach().float()[None]
    return values


def _value(site: Site, factors: Mapping[str, tuple[Tensor, Tensor]], model: AdapterModel) -> Tensor:
    """What a site of the new model is at the trained point, shape ``site.shape``."""
    if site.name in (WEIGHT, BIAS):
        return model.head.get_parameter(site.name.removeprefix("head.")).detach().float().reshape(site.shape)
    if site.part == Part.CORE:
        like = factors[site.layers[0]][0]
        return torch.eye(site.rank, device=like.device).expand(site.shape).clone()
    return torch.stack([factors[path][site.part == Part.B].detach().float() for path in site.layers])
