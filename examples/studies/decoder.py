"""A Llama cut in two: what its lower layers make of a text is the same at every step and draw, and is computed once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.errors import ConfigError


class Below(nn.Module):
    """The embeddings and the lower layers, without the last norm.

    Args:
        transformer: of the language model; it is not changed.
        layers: how many stay.
    """

    def __init__(self, transformer: Any, layers: int) -> None:
        super().__init__()
        part: Any = copy.copy(transformer)  # shares all weights
        part._modules = {**transformer._modules, "layers": transformer.layers[:layers], "norm": nn.Identity()}
        self.part = part

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return hidden states, shape (B, T, d), of token numbers and a mask, padded on the right."""
        states: Tensor = self.part(**inputs, use_cache=False).last_hidden_state
        return states


class Passes(nn.Module):
    """Stands where a lower layer was: its input is what that layer would have returned."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def cut(model: nn.Module, layers: int) -> tuple[Below, nn.Module]:
    """Cut a language model in two: what makes the hidden states below its last ``layers``, and those as a backbone.

    The second takes them as ``inputs_embeds`` and returns what the whole returns of the tokens: positions and the
    causal mask are made of their number and of ``attention_mask``. Its layers keep their numbers, so that an adapter's
    layers have the same paths in both, and what was trained on it is loaded into the whole to write text.

    Args:
        model: a ``LlamaForCausalLM``, such as SmolLM2; it is not changed.
        layers: how many the backbone has.

    Returns:
        Both in eval mode. The backbone's layers and norm are copies, and its embeddings and output layer are the
        model's own, which stay frozen.

    Raises:
        ConfigError: the model has no such stack, or too few layers.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    >>> whole = LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes)).eval()
    >>> inputs = {"input_ids": torch.tensor([[3, 1, 4, 1, 5]])}
    >>> below, top = cut(whole, layers=1)
    >>> torch.allclose(top(inputs_embeds=below(inputs)).logits, whole(**inputs).logits, atol=1e-6)
    True
    """
    transformer: Any = getattr(model, "model", None)
    stack = getattr(transformer, "layers", None)
    if not isinstance(stack, nn.ModuleList) or not isinstance(getattr(transformer, "norm", None), nn.Module):
        raise ConfigError(
            f"{type(model).__name__} has no model.layers and model.norm, by which it would be cut. Take a language "
            "model of Llama's kind, such as bayes_adapters.backbones.language_model()."
        )
    if not 1 <= layers < len(stack):
        raise ConfigError(
            f"layers={layers} of {len(stack)} cannot be cut off: at least one is above, and one below the cut."
        )
    first = len(stack) - layers
    upper: Any = copy.copy(transformer)
    blocks = [Passes() if number < first else copy.deepcopy(block) for number, block in enumerate(stack)]
    upper._modules = {**transformer._modules, "layers": nn.ModuleList(blocks), "norm": copy.deepcopy(transformer.norm)}
    top: Any = copy.copy(model)
    top._modules = {**model._modules, "model": upper}
    return Below(transformer, first).eval(), top.eval()


def join(top: nn.Module, model: nn.Module) -> None:
    """Put the lower layers back into a backbone of :func:`cut`, with its adapters, so that it reads tokens and writes.

    Args:
        top: changed in place.
        model: what it was cut from; its layers are shared, and not changed.
    """
    own: Any = top
    whole: Any = model
    for number, block in enumerate(own.model.layers):
        if isinstance(block, Passes):
            own.model.layers[number] = whole.model.layers[number]
