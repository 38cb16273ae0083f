"""``Ensemble``: several trained adapters as one posterior, a draw being one of them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters._curved_checks import require_rows
from bayes_adapters.errors import whole_number
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.joint_distributions import PointMixture
from bayes_adapters.sites import REAL, Granularity, Part


class Ensemble(JointGuide):
    """``q(w) = (1/K) Σ_k δ(w − w_k)`` over all entries of all sites: K points, each as probable as another.

    With a seed, draw s of ``predict`` is member ``π(s mod K)`` for a permutation π that the seed chooses: K draws, or a
    multiple, take each member equally often, and the predictive is exactly the average of the members' predictives.
    Fewer draws take as many members. With ``seed=None`` members are drawn independently.

    :func:`bayes_adapters.surgery.ensemble.ensemble` makes model and guide from trained adapters. The points are a
    buffer: ``save`` and ``load`` keep them, and nothing of the guide is trained. Its mean, which ``mean_only`` and
    ``to_lora`` take, is the average of the members' weights, which is not the average of their answers. "KL" is
    ``−log K − log p(w_k)`` at the draw, as that of ``Delta`` is ``−log p``.

    Source: Lakshminarayanan et al. 2017, arXiv 1612.01474.

    Args:
        model: a model whose random parts are weights.
        members: K.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> Ensemble(model, members=3).get_buffer("points").shape  # the 32 entries of A in two layers
    torch.Size([3, 32])
    """

    name: ClassVar[str] = "ensemble"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL
    all_reals: ClassVar[bool] = False
    serves_hyper: ClassVar[bool] = False

    def __init__(self, model: AdapterModel, *, members: int = 2) -> None:
        super().__init__(model)
        whole_number("members", members)
        self.members = members
        self.register_buffer("points", torch.stack([self.start() for _ in range(members)]))

    def place(self, points: Float[Tensor, "K D"]) -> None:
        """Set the points.

        Raises:
            ConfigError: they are not finite, or of another shape.
        """
        require_rows("points", points, self.members, self.size)
        self.get_buffer("points").copy_(points)

    def joint(self) -> TorchDistributionMixin:
        return PointMixture(self.get_buffer("points"), validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"members": self.members}
