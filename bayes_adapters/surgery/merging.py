"""Merge deterministic low-rank updates into the weights: ``W = W₀ + s B A``, the same function without the adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bayes_adapters.adapters._checks import require_unmerged
from bayes_adapters.adapters._lora_checks import require_formula, require_lora
from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapted_layers, remove
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.linear_layers import is_conv1d
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._checks import require_mergeable, require_no_inter, require_separable


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
    _mergeable(backbone)
    whole = copy.deepcopy(backbone)
    for layer in adapted_layers(whole).values():
        _merge(layer, *as_lora(layer))
    return remove(whole)


@contextmanager
def merged(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context the layers of ``model`` hold ``W₀ + (alpha / r) B A``: predictions at the frozen model's cost.

    After it, or after an error, they hold W₀ again: the tensor itself is kept and put back, nothing is subtracted. So
    memory holds both weights of every adapted layer meanwhile. Predictions inside differ by rounding only.

    Args:
        model: as for :func:`merge`, or an :class:`~bayes_adapters.AdapterModel` with such a backbone. Do not move or
            cast it inside the context.

    Yields:
        ``model``.

    Raises:
        ConfigError: as :func:`merge`; inside the context, the model is trained, saved, merged again, or its adapters
            are disabled.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> with merged(model):
    ...     predict(model, Delta(model), Batch({"input_ids": torch.tensor([[3, 5]])})).probs.shape
    torch.Size([1])
    """
    layers = _mergeable(model).values()
    before = [(layer, layer.base_layer.get_parameter("weight"), layer.enabled) for layer in layers]
    try:
        with exclusive(), torch.no_grad():
            for layer in layers:
                if layer.enabled:
                    _merge(layer, *as_lora(layer))
                layer.enabled, layer.merged = False, True
        yield model
    finally:
        with exclusive():
            for layer, weight, enabled in before:
                layer.base_layer.weight = weight
                layer.enabled, layer.merged = enabled, False


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

    >>> from torch import nn
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli, adapted_layers
    >>> from bayes_adapters.systems import build
    >>> encoders = nn.ModuleDict({"left": BertModel(tiny), "right": BertModel(tiny)})
    >>> model, guide = build("cola", encoders, Bernoulli(), rank=2, gamma=4, num_data=10)
    >>> whole = merge_intra(model)
    >>> type(model.backbone["left"].encoder.layer[0].attention.self.query).__name__
    'AdaptedLinear'
    """
    require_unmerged(adapted_layers(model.backbone), "merged again")
    for path, layer in adapted_layers(model.backbone).items():
        require_mergeable(path, layer)
        require_formula(layer)
        require_separable(path, layer)
    whole = copy.deepcopy(model)
    for layer in adapted_layers(whole.backbone).values():
        if layer.lora_A is not None and layer.lora_B is not None:
            _merge(layer, layer.lora_A, layer.lora_B)
            layer.lora_B.zero_()
    return whole


def _mergeable(module: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers of ``module``, each of which is a plain LoRA on a weight of numbers."""
    layers = adapted_layers(module)
    require_unmerged(layers, "merged again")
    for path, layer in layers.items():
        require_no_inter(path, layer)
        require_mergeable(path, layer)
        require_lora(layer)
    return layers


def _merge(layer: AdaptedLinear, down: Tensor, up: Tensor) -> None:
    """Give the base layer a new weight: the old tensor may be another module's too."""
    delta = layer.scaling * up.cpu().double() @ down.cpu().double()  # on the CPU: some devices have no float64
    weight = layer.base_layer.get_parameter("weight")
    delta = delta.T if is_conv1d(layer.base_layer) else delta
    layer.base_layer.weight = nn.Parameter(weight + delta.to(weight), requires_grad=False)
