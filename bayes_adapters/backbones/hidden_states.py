"""The width of a backbone, and the last hidden states of what it returned."""

from __future__ import annotations

import re
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from bayes_adapters.errors import ConfigError

_WIDTHS = ("word_embed_proj_dim", "hidden_size", "d_model", "n_embd")
"""Where configs have their width; OPT-350m projects its hidden states."""
_TASK = re.compile(r"(For[A-Z]\w*|LMHeadModel|WithLMHeadModel|DoubleHeadsModel)$")
"""Endings of the names of transformers' models with a task head."""


def hidden_width(backbone: nn.Module) -> int:
    """Return the width of a Hugging Face model's hidden states, from its config or, of several, from that of its text.

    Raises:
        ConfigError: there is none, or the model has a task head and returns no hidden states.
    """
    name = type(backbone).__name__
    if isinstance(backbone, PreTrainedModel) and _TASK.search(name):
        base = next((path for path, module in backbone.named_children() if module is backbone.base_model), "")
        raise ConfigError(
            f"{name} has a task head and returns no last_hidden_state. Pass the transformer without it"
            + (f", here backbone.{base}," if base else "")
            + " as AutoModel.from_pretrained(...) makes it."
        )
    config: Any = getattr(backbone, "config", None)
    width = _width(config)
    if width is None and hasattr(config, "get_text_config"):  # Gemma 3 and LLaVA
        width = _width(config.get_text_config(decoder=True))
    if width is not None:
        return width
    raise ConfigError(f"The config of {name} has no hidden_size, d_model or n_embd: pass a Hugging Face backbone.")


def _width(config: Any) -> int | None:
    found = (getattr(config, name, None) for name in _WIDTHS)
    return next((width for width in found if isinstance(width, int)), None)


def last_hidden_state(output: Any, backbone: nn.Module) -> Float[Tensor, "rows T d"]:
    """Return the last hidden states of what ``backbone`` returned, of the width that its config names.

    Raises:
        ConfigError: there are none, or they have another shape or width.
    """
    hidden, name = getattr(output, "last_hidden_state", None), type(backbone).__name__
    if hidden is None:
        raise ConfigError(
            f"{name} returns a {type(output).__name__} without last_hidden_state. Pass the transformer without a task "
            "head, as AutoModel.from_pretrained(...) makes it, with return_dict=True."
        )
    width = hidden_width(backbone)
    if hidden.dim() != 3 or hidden.shape[-1] != width:
        raise ConfigError(
            f"{name} returns hidden states of shape {tuple(hidden.shape)} and must return (rows, T, {width}), as wide "
            "as its config says. Reformer's are twice as wide, and those of wav2vec 2.0 with add_adapter=True may be "
            "of another width, while convolutional networks return maps: wrap the backbone in a module that returns "
            "(rows, T, d) and whose config.hidden_size is d."
        )
    return hidden


def pooler_output(output: Any, backbone: nn.Module) -> Float[Tensor, "rows d"]:
    """Return the ``pooler_output`` of what ``backbone`` returned, as wide as its config says.

    Raises:
        ConfigError: there is none, or it has another shape or width.
    """
    pooled, width = getattr(output, "pooler_output", None), hidden_width(backbone)
    if not isinstance(pooled, Tensor) or pooled.dim() != 2 or pooled.shape[-1] != width:
        found = "none" if pooled is None else f"one of shape {tuple(pooled.shape)}"
        raise ConfigError(
            f"pooling='pooler' needs a pooler_output of shape (rows, {width}) and {type(backbone).__name__} returns "
            f"{found}. Load it with its pooling layer, or take pooling='cls'."
        )
    return pooled
