"""``Laplace``: a Gaussian around a trained point, from the curvature of the loss there; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.curved_gaussian import CurvedGaussian
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class Laplace(JointGuide):
    """``q(w) = N(m, (λ S⁻² + H)⁻¹)`` over all D entries of all sites, H the curvature of −log p(data | w) at m.

    S is the diagonal of the prior's standard deviations, and λ multiplies its precision. H is held in the unit of the
    prior, ``S H S = diag(h) + Σ_b U_b diag(e_b) U_bᵀ``, with the k_b orthonormal directions U_b of each block of
    entries and their curvatures e_b, so that λ may be changed at no cost, by ``guide.gaussian.rescale(λ)``::

        covariance of S⁻¹ (w − m) = I/λ − Σ_b U_b diag(1/λ − 1/(λ + e_b)) U_bᵀ,   or diag(1 / (λ + h))

    :func:`bayes_adapters.surgery.laplace.laplace` makes model and guide from a trained adapter. m, S, h, U, e and log λ
    are buffers: ``save`` and ``load`` keep them, and nothing of the guide is trained. ``fit`` trains what is left of
    the model under noise that stays as it is. All of w is drawn at once; a draw is one function of all inputs.

    Source: Daxberger et al. 2021, arXiv 2106.14806; for LoRA Yang et al. 2024, arXiv 2308.13111.

    Args:
        model: a model whose random parts are weights.
        blocks: (first entry, entry after the last, k) for each block with directions; none is a diagonal H.
        scale: S at the start, before ``guide.gaussian.place``.

    Raises:
        ConfigError: blocks that share entries, lie outside 0 … D or have more directions than entries.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2, granularity="global", num_data=10)
    >>> guide = Laplace(model, scale=0.5)
    >>> guide.gaussian.rescale(4.0)
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
        self.scale = scale
        self.gaussian = CurvedGaussian(self.start(), blocks, scale)

    def joint(self) -> TorchDistributionMixin:
        return self.gaussian()

    def config(self) -> dict[str, Any]:
        return {"blocks": [list(block) for block in self.gaussian.blocks], "scale": self.scale}
