"""LoRA-XS: a random core between frozen factors that are the largest singular directions of the base weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.linear_layers import is_conv1d, linear_size
from bayes_adapters.models._factor_checks import require_directions, require_float_weight
from bayes_adapters.models._small_core import SmallCore


class SingularLinear(AdaptedLinear):
    """``h = W₀ x + (α/r) U_r E Σ_r V_rᵀ x`` with ``W₀ = U Σ Vᵀ`` the layer's own base weight.

    ``A = Σ_r V_rᵀ`` and ``B = U_r`` are frozen parameters, so that the layer is a LoRA with a core in everything else.
    """

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, **options: Any) -> None:
        super().__init__(base_layer, rank, alpha, **options)
        require_float_weight(self.path, base_layer)
        require_directions(self.path, self.rank, *linear_size(base_layer))
        weight = base_layer.get_parameter("weight").detach().float()
        factors = directions(weight.mT if is_conv1d(base_layer) else weight, self.rank)
        for name, value in zip(("lora_A", "lora_B"), factors, strict=True):
            setattr(self, name, nn.Parameter(value, requires_grad=False))


def directions(
    weight: Float[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Return ``Σ_r V_rᵀ`` and ``U_r`` of the r largest singular values; the largest entry of each v_i is positive.

    >>> down, up = directions(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), 1)
    >>> down, up
    (tensor([[3., 0.]]), tensor([[1.],
            [0.]]))
    """
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    left, right = left[:, :rank], right[:rank]
    largest = right.gather(1, right.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return sign * singular[:rank, None] * right, (left * sign.mT).contiguous()


class LoRAXS(SmallCore):
    """``h = W₀ x + (α/r) U_r E Σ_r V_rᵀ x``, ``E ~ prior``: r² numbers per layer, whatever the layer's width.

    A and B are the truncated singular value decomposition of W₀ and stay frozen; the core is all that is learned, or,
    under ``Delta``, the published LoRA-XS. An entry E_ij moves input direction j, stretched by σ_j, to output direction
    i, so deviations of E are relative to the weight: 0.1 (r/α) changes what W₀ does to those directions by a tenth.
    E starts at N(0, 10⁻¹⁰), where the model is the frozen backbone.

    A decomposition is unique up to the sign of each pair (u_i, v_i), and within equal singular values up to a rotation;
    libraries and devices differ in both, and a core learned under one is wrong under another. So A and B are saved with
    the adapter, as LoRA's are, and are read back bit for bit rather than computed again.

    Source: Bałazy et al. 2024, "LoRA-XS", arXiv 2405.17604 (there ``x W + x A R B`` with ``A = U_r Σ_r``, ``B = V_rᵀ``
    of the transposed weight: Σ is on the side of the input).

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        granularity: ``"global"`` (then pass ``num_data``), ``"sequence"`` or ``"token"``.
        prior: of E, see :mod:`bayes_adapters.priors`; None means N(0, 0.2²).
        **options: further options of :class:`bayes_adapters.AdapterModel`.

    Raises:
        ConfigError: a layer has fewer directions than ranks, or a weight that is no matrix of floating-point numbers.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> model = LoRAXS(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> [(site.name, site.shape) for site in model.sites]
    [('core.global', (2, 2, 2))]
    >>> [name for name in model.trainable_parameters() if "lora" in name]
    []
    """

    structure: ClassVar[str] = "lora_xs"
    layer: ClassVar[type[AdaptedLinear]] = SingularLinear
    start_scale: ClassVar[float] = 1e-5
