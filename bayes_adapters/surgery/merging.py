"""Merge deterministic low-rank updates into the weights: ``W = W₀ + s B A``, the same function without the adapter."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bayes_adapters.adapters._lora_checks import require_formula, require_lora
from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapted_layers, remove
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.model import AdapterModel


@torch.no_grad()
def merge(backbone: nn.Module) -> nn.Module:
    """Return a copy of ``backbone`` whose layers hold ``W₀ + (alpha / r) B A`` and which has no adapters.

    Every adapted layer gets a weight of its own. Where it shared W₀ with other modules (tied embeddings, a view of a
    larger tensor) these keep W₀, as they had no part in its adapter. ``save_pretrained`` of a backbone whose config
    ties embeddings would tie the two again: save the copy's ``state_dict()`` instead.

    Args:
        backbone: with plain adapters (E = I, nothing random), of floating-point weights; it is not changed. For a
            Bayesian adapter whose random parts are weights, make one with
            :func:`bayes_adapters.surgery.export.to_lora` first.

    Raises:
        ConfigError: an adapter is random, depends on another modality, or is of another structure that is no LoRA; or
            its base layer has no floating-point weight.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> type(merge(model.backbone).encoder.layer[0].attention.self.query).__name__
    'Linear'
    """
    for path, layer in adapted_layers(backbone).items():
        if layer.inter:
            raise ConfigError(
                f"{path!r} has a path from {', '.join(layer.inter)} whose core Φ(x̄) is another one for every input, so "
                "no single weight equals it. merge_intra(model) merges the rest; to merge all, train with "
                "ConcatLoRA, whose encoders do not see each other."
            )
        _require_plain(path, layer)
        require_lora(layer)
    merged = copy.deepcopy(backbone)
    for layer in adapted_layers(merged).values():
        _merge(layer, *as_lora(layer))
    return remove(merged)


@torch.no_grad()
def merge_intra(model: AdapterModel) -> AdapterModel:
    """Return a copy of ``model`` whose intra-modal paths are in the base weights; its inter-modal paths stay.

    The copy computes the same function. It is for use, not for saving: its base weights are no longer those of the
    backbone that a saved adapter names. A guide made for ``model`` fits it by its state: ``G(copy, **g.config())`` and
    ``load_state_dict(g.state_dict())``.

    Args:
        model: with deterministic intra-modal paths, such as CoLA.

    Raises:
        ConfigError: an intra-modal path is random, shares its matrices with the inter-modal one, or its base layer has
            no floating-point weight.
    """
    for path, layer in adapted_layers(model.backbone).items():
        _require_plain(path, layer)
        require_formula(layer)
        if type(layer).as_lora is not AdaptedLinear.as_lora:
            raise ConfigError(
                f"{path!r} is a {type(layer).__name__}; the intra-modal path is taken out of plain adapted layers only."
            )
        if any(other.lora_A is layer.lora_A or other.lora_B is layer.lora_B for other in layer.inter.values()):
            raise ConfigError(
                f"The two paths of {path!r} share a matrix, so the intra-modal one cannot be taken out alone. Merging "
                "needs share='none'."
            )
    merged = copy.deepcopy(model)
    for layer in adapted_layers(merged.backbone).values():
        if layer.lora_A is not None and layer.lora_B is not None:
            _merge(layer, layer.lora_A, layer.lora_B)
            layer.lora_B.zero_()
    return merged


def _require_plain(path: str, layer: AdaptedLinear) -> None:
    if layer.sites:
        parts = ", ".join(part.value for part in layer.sites)
        raise ConfigError(
            f"{path!r} has a random {parts}: a draw, not a weight, so there is nothing to merge. Export the "
            "posterior's mean first: bayes_adapters.surgery.export.to_lora(model, guide, backbone)."
        )
    weight = dict(layer.base_layer.named_parameters(recurse=False)).get("weight")
    if weight is None or not weight.is_floating_point():
        raise ConfigError(
            f"The base layer {path!r} has no floating-point weight of its own (quantised, or computed from others by a "
            "parametrisation?); load the backbone in full precision."
        )


def _merge(layer: AdaptedLinear, down: Tensor, up: Tensor) -> None:
    """Give the base layer a new weight: the old tensor may be another module's too."""
    delta = layer.scaling * up.cpu().double() @ down.cpu().double()  # on the CPU: some devices have no float64
    weight = layer.base_layer.get_parameter("weight")
    delta = delta.T if isinstance(layer.base_layer, Conv1D) else delta
    layer.base_layer.weight = nn.Parameter(weight + delta.to(weight), requires_grad=False)
