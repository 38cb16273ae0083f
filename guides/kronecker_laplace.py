"""``KroneckerLaplace``: a Gaussian around a trained point, with the curvature of each matrix as a Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.distributions import CurvedMatrices
from bayes_adapters.guides._kronecker_checks import require_pairs
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class KroneckerLaplace(JointGuide):
    """``q(w) = Π_b N(vec m_b, (λ s_b⁻² I + G_b ⊗ A_b)⁻¹)``, one factor for the matrix of every site and layer.

    A_b is the second moment of what the matrix is multiplied with, G_b the curvature in what comes out: KFAC. s_b is
    the prior's standard deviation, and λ multiplies its precision. With p and k directions of G and A, and their
    curvatures g and a, in the unit of the prior::

        covariance of X = s² [ I/λ − (P ⊗ Q) diag(1/λ − 1/(λ + g_i a_j)) (P ⊗ Q)ᵀ ]

    a matrix normal whose damping λ I is kept exactly, so that λ may be changed at no cost, by
    ``guide.gaussian.rescale(λ)``. Of an m × n matrix it holds m p + n k numbers. A vector is a matrix of one column,
    and its block is dense and exact.

    :func:`bayes_adapters.surgery.laplace.laplace` with ``structure="kronecker"`` makes model and guide from a trained
    adapter. All is buffers: ``save`` and ``load`` keep it, and nothing of the guide is trained. ``fit`` trains what is
    left of the model under noise that stays as it is. All of w is drawn at once; a draw is one function of all inputs.

    Source: Martens and Grosse 2015, arXiv 1503.05671; Ritter, Botev and Barber 2018; for LoRA Yang et al. 2024,
    arXiv 2308.13111.

    Args:
        model: a model whose random parts are weights.
        kept: (p, k) for every matrix, in the order of sites and their layers; none at all is no curvature.
        scale: s at the start, before ``guide.gaussian.place``.

    Raises:
        ConfigError: another number of pairs than matrices, or more directions than rows or columns.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2, granularity="global", num_data=10)
    >>> guide = KroneckerLaplace(model, kept=[(2, 1), (2, 1)], scale=0.5)
    >>> guide.gaussian.rescale(4.0)
    >>> guide.joint().variance
    tensor([0.0625, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625, 0.0625])
    >>> list(guide.parameters())
    []
    """

    name: ClassVar[str] = "kronecker_laplace"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL
    serves_hyper: ClassVar[bool] = False

    def __init__(self, model: AdapterModel, *, kept: Sequence[Sequence[int]] = (), scale: float = 0.1) -> None:
        super().__init__(model)
        self.scale = scale
        shapes = matrices(model)
        pairs = [tuple(pair) for pair in kept] or [(0, 0)] * len(shapes)
        require_pairs(pairs, shapes)
        sides = [(*shape, *pair) for shape, pair in zip(shapes, pairs, strict=True)]
        self.gaussian = CurvedMatrices(self.start(), sides, scale)

    def joint(self) -> TorchDistributionMixin:
        return self.gaussian()

    def config(self) -> dict[str, Any]:
        kept = [[p, k] for _, _, p, k in self.gaussian.sides]
        return {"kept": kept if any(any(pair) for pair in kept) else [], "scale": self.scale}


def matrices(model: AdapterModel) -> list[tuple[int, int]]:
    """Return (rows, columns) of the matrix of every site and layer, in their order in w; a vector is one column."""
    return [(site.event[0], math.prod(site.event[1:])) for site in model.sites for _ in site.layers]
