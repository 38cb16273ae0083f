"""A language model's own way from hidden states to logits, so that it can be taken for some tokens at a time.

The model's ``forward`` runs on a shallow copy, in which something that returns given hidden states stands where the
transformer was. Scaling, caps and biases are then the model's, and no second one is built or changed.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import ForwardPass
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.reparametrisation import Draw
from bayes_adapters.backbones.hidden_states import config_width
from bayes_adapters.backbones.language_models import output_layer, vocabulary_size
from bayes_adapters.sites import Granularity


@dataclass(frozen=True)
class OutputPath:
    """From hidden states to logits.

    Args:
        source: path of the part of the model whose ``last_hidden_state`` the path begins with: its transformer, or the
            decoder where encoder and decoder are two parts (T5).
    """

    source: str

    @classmethod
    def of(cls, backbone: nn.Module) -> OutputPath | None:
        """Find the path of a language model; None where its ``forward`` takes other things from its parts."""
        width, size = config_width(backbone), vocabulary_size(backbone)
        first = next(backbone.parameters())
        for source in (str(getattr(backbone, "base_model_prefix", "")), "decoder"):
            if source not in backbone._modules:
                continue
            path = cls(source)
            try:
                with torch.no_grad():
                    found = path.logits(backbone, torch.zeros(1, 1, width, dtype=first.dtype, device=first.device))
            except Exception:  # noqa: BLE001, S112 -- whatever a model's code says of missing parts: there is another way
                continue
            if tuple(found.shape) == (1, 1, size):
                return path
        return None

    def logits(self, backbone: nn.Module, hidden: Float[Tensor, "rows t d"]) -> Float[Tensor, "rows t V"]:
        """Return the logits of ``hidden``, as the model computes them of its own hidden states."""
        net: Any = copy.copy(backbone)  # shares all parameters
        net.__dict__.pop("forward", None)  # that of a dispatched model runs the original
        net._modules = {**backbone._modules, self.source: _Returns(hidden)}
        given = {"encoder_outputs": (hidden,)} if "encoder_outputs" in inspect.signature(net.forward).parameters else {}
        logits: Tensor = net.forward(**given).logits
        return logits


class _Returns(nn.Module):
    """Stands where the transformer was, and returns hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _States(self.hidden)


class _States:
    """Hidden states as the first entry and by their name; there are no attentions, caches or images beside them."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, place: int) -> Tensor:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def output_needs_all(backbone: nn.Module, forward_pass: ForwardPass | None) -> bool:
    """Whether the output layer must see all tokens of a pass at once, in one call.

    So it is where it has a draw for each token or example, or noise of its own that is drawn when it runs.
    """
    layer = output_layer(backbone)
    if not isinstance(layer, AdaptedLinear):
        return False
    local = any(site.granularity is not Granularity.GLOBAL for site in layer.sites.values())
    if local or forward_pass is None:
        return bool(layer.sites)
    return not all(isinstance(forward_pass.weights[part, layer.path], Draw) for part in layer.sites)
