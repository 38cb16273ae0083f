"""Whether the tokens of a backbone see only those before them."""

from __future__ import annotations

from torch import nn

_BOTH_WAYS = ("xlnet",)
"""Types of models with a language-modelling head whose tokens see each other all the same."""


def is_causal(backbone: nn.Module) -> bool:
    """Whether a token's hidden state depends on that token and on earlier ones only.

    Attention modules say so themselves (``is_causal``). Of a backbone without such modules (Mamba, BLOOM) the type of
    model tells: those that transformers lists for causal language modelling and not for masked one.
    """
    said = [bool(m.is_causal) for m in backbone.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    if said:
        return any(said)
    from transformers.models.auto import modeling_auto

    kind = getattr(getattr(backbone, "config", None), "model_type", "")
    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in causal and kind not in masked and kind not in _BOTH_WAYS
