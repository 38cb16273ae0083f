"""``Laplace``: a Gaussian around a trained point, from the curvature of the loss there; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.errors import positive_number
from bayes_adapters.guides._laplace_checks import require_blocks, require_curvature
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.joint_distributions import Block, ShrunkNormal
from bayes_adapters.sites import REAL, Granularity, Part


class Laplace(JointGuide):
    """``q(w) = N(m, (λ S⁻² + H)⁻¹)`` over all D entries of all sites, H the curvature of −log p(data | w) at m.

    S is the diagonal of the prior's standard deviations, and λ multiplies its precision. H is held in the unit of the
    prior, ``S H S = diag(h) + Σ_b U_b diag(e_b) U_bᵀ``, with the k_b orthonormal directions U_b of each block of
    entries and their curvatures e_b, so that λ may be changed at no cost (:meth:`rescale`)::

        covariance of S⁻¹ (w − m) = I/λ − Σ_b U_b diag(1/λ − 1/(λ + e_b)) U_bᵀ,   or diag(1 / (λ + h))

    :func:`bayes_adapters.surgery.laplace.laplace` makes model and guide from a trained adapter. m, S, h, U, e and log λ
    are buffers: ``save`` and ``load`` keep them, and nothing of the guide is trained. ``fit`` trains what is left of
    the model under noise that stays as it is. All of w is drawn at once; a draw is one function of all inputs.

    Source: Daxberger et al. 2021, arXiv 2106.14806; for LoRA Yang et al. 2024, arXiv 2308.13111.

    Args:
        model: a model whose random parts are weights.
        blocks: (first entry, entry after the last, k) for each block with directions; none is a diagonal H.
        scale: S at the start, before :meth:`place`.

    Raises:
        ConfigError: blocks that share entries, lie outside 0 … D or have more directions than entries.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2, granularity="global", num_data=10)
    >>> guide = Laplace(model, scale=0.5)
    >>> guide.rescale(4.0)
    >>> guide.joint().variance
    tensor([0.0625, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625])
    >>> list(guide.parameters())
    []
    """

    name: ClassVar[str] = "laplace"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL
    serves_hyper: ClassVar[bool] = False

    def __init__(self, model: AdapterModel, *, blocks: Sequence[Sequence[int]] = (), scale: float = 0.1) -> None:
        super().__init__(model)
        positive_number("scale", scale)
        self.blocks = require_blocks(blocks, self.size)
        self.scale = scale
        start = self.start()
        self.register_buffer("loc", start)
        self.register_buffer("deviation", torch.full_like(start, scale))
        self.register_buffer("diagonal", torch.zeros_like(start))
        self.register_buffer("log_precision", start.new_zeros(()))
        for number, (first, last, count) in enumerate(self.blocks):
            directions = torch.eye(last - first, count, device=start.device)
            self.register_buffer(f"directions_{number}", directions)
            self.register_buffer(f"curvature_{number}", start.new_zeros(count))

    @property
    def prior_precision(self) -> float:
        """λ."""
        return math.exp(float(self.get_buffer("log_precision")))

    def rescale(self, prior_precision: float) -> None:
        """Set λ.

        Raises:
            ConfigError: it is not positive and finite.
        """
        positive_number("prior_precision", prior_precision)
        self.get_buffer("log_precision").fill_(math.log(prior_precision))

    @torch.no_grad()
    def place(
        self,
        loc: Float[Tensor, " D"],
        deviation: Float[Tensor, " D"],
        diagonal: Float[Tensor, " D"] | None,
        directions: Sequence[tuple[Float[Tensor, "b k"], Float[Tensor, " k"]]],
    ) -> None:
        """Set m, S, h and (U_b, e_b) of each block.

        Args:
            loc: m.
            deviation: the diagonal of S, positive.
            diagonal: h ≥ 0; None is 0.
            directions: one pair for each block, in their order; e_b ≥ 0.

        Raises:
            ConfigError: an entry is negative, NaN or infinite: the precision would not be positive definite.
        """
        require_curvature(deviation, [diagonal] if diagonal is not None else [e for _, e in directions])
        held = {"loc": loc, "deviation": deviation}
        held["diagonal"] = torch.zeros_like(loc) if diagonal is None else diagonal
        for number, (along, curvature) in enumerate(directions):
            held |= {f"directions_{number}": along, f"curvature_{number}": curvature}
        for name, value in held.items():
            self.get_buffer(name).copy_(value)

    def joint(self) -> TorchDistributionMixin:
        precision = self.get_buffer("log_precision").exp()
        scale = self.get_buffer("deviation") * (precision + self.get_buffer("diagonal")).rsqrt()
        blocks: list[Block] = []
        for number, (first, last, _) in enumerate(self.blocks):
            shrink = (precision / (precision + self.get_buffer(f"curvature_{number}"))).sqrt()
            blocks.append((slice(first, last), self.get_buffer(f"directions_{number}"), shrink))
        return ShrunkNormal(self.get_buffer("loc"), scale, blocks, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"blocks": [list(block) for block in self.blocks], "scale": self.scale}
