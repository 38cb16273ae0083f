"""How the last hidden states of a backbone become the features that the head sees."""

from __future__ import annotations

from enum import StrEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayes_adapters.errors import ConfigError


class Pooling(StrEnum):
    """How the last hidden states (rows, T, d) become one vector per example.

    >>> states, mask = torch.tensor([[[1.0], [3.0], [100.0]]]), torch.tensor([[True, True, False]])
    >>> Pooling.MEAN(states, mask), Pooling("cls")(states, mask)
    (tensor([[2.]]), tensor([[1.]]))
    """

    MEAN = "mean"
    """Mean over real tokens."""
    CLS = "cls"
    """The first real token."""
    LAST = "last"
    """The last real token (causal models)."""
    POOLER = "pooler"
    """What the backbone itself makes of them, its ``pooler_output`` (BERT: tanh of a linear map of the first token)."""
    NONE = "none"
    """They stay as they are, one vector per token: for likelihoods with one target per token, and for no others."""

    def __call__(
        self, hidden: Float[Tensor, "rows T d"], mask: Bool[Tensor, "rows T"] | None
    ) -> Float[Tensor, "rows *T d"]:
        """Pool ``hidden``; a mask of None means that every token is real."""
        if self is Pooling.POOLER:
            raise ConfigError("The pooler's output is the backbone's own and cannot be computed from hidden states.")
        if self is Pooling.NONE:
            return hidden
        if self is Pooling.MEAN:
            if mask is None:
                return hidden.mean(1)
            # In half precision the sum overflows; and NaN * 0 is NaN, so padding is left out rather than multiplied.
            wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            mean = wide.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True)
            return mean.to(hidden.dtype)
        first = self is Pooling.CLS
        if mask is None:
            return hidden[:, 0 if first else -1]
        place = mask.int().argmax(1) if first else mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), place]
