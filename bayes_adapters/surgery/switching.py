"""Several adapters on one frozen backbone, one of them in it at a time.

Each is a model of its own, with its head, likelihood and guide. Taking a model's layers out and putting them back
changes none of their tensors, so its predictions are those of a model that has the backbone for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from bayes_adapters.adapters._checks import require_unmerged
from bayes_adapters.adapters.installation import adapted_layers, remove, swap
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._checks import require_own_bases

_Model = TypeVar("_Model", bound=AdapterModel)


def activate(model: _Model) -> _Model:
    """Make the adapters of ``model`` the ones in its backbone; those of another model are taken out.

    PEFT's ``set_adapter``. For ``add_adapter``: take out what is there with ``remove(backbone)`` and build, or load, a
    second model on the same backbone. A model whose adapters are out refuses to predict, to train and to be saved, and
    its ``parameters()`` lack them: make its optimizer, and move or cast it, while it is active.

    Args:
        model: any model, with or without random parts. Its adapters go to where their base layers are.

    Returns:
        ``model``.

    Raises:
        ConfigError: a layer of the backbone is no longer the one that was adapted; adapters are merged.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, Categorical
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> backbone = BertModel(tiny)
    >>> first = LoRA(backbone, Bernoulli(), rank=2)
    >>> second = LoRA(remove(backbone), Categorical(3), rank=4)
    >>> [layer.rank for layer in adapted_layers(activate(first).backbone).values()]
    [2, 2]
    """
    with exclusive(), unwrapped(model):
        require_unmerged(adapted_layers(model.backbone), "switched")
        _put_in(model.backbone, model.installed)
    return model


@contextmanager
def active(model: _Model) -> Iterator[_Model]:
    """Within the context ``model`` is the active one; after it the backbone has the adapters that it had before.

    No other thread predicts or trains meanwhile.

    Yields:
        ``model``.

    Raises:
        ConfigError: as :func:`activate`.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> first = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> second = LoRA(remove(first.backbone), Bernoulli(), rank=2)
    >>> with active(first):
    ...     predict(first, Delta(first), Batch({"input_ids": torch.tensor([[3, 5]])})).probs.shape
    torch.Size([1])
    >>> second.require_installed()
    """
    with exclusive():
        with unwrapped(model):
            before = adapted_layers(model.backbone)
        activate(model)
        try:
            yield model
        finally:
            with unwrapped(model):
                _put_in(model.backbone, before)


def _put_in(backbone: nn.Module, layers: Mapping[str, AdaptedLinear]) -> None:
    """Make ``layers`` (path → layer) the only adapters in ``backbone``."""
    require_own_bases(backbone, layers)
    for layer in layers.values():
        device = next(layer.base_layer.parameters()).device
        if any(parameter.device != device for parameter in layer.parameters()):
            layer.to(device)
    remove(backbone)
    swap(backbone, [(layer.base_layer, layer) for layer in layers.values()])
