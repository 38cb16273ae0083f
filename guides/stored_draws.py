"""``StoredDraws``: a posterior that is its draws, such as those of a Markov chain."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, ClassVar

from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.devices import generators_kept
from bayes_adapters.distributions import Points
from bayes_adapters.errors import whole_number
from bayes_adapters.guides._checks import require_draws_of
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class StoredDraws(JointGuide):
    """``q(w) = (1/S) Σ_s δ(w − w_s)`` over all D entries of all sites: S stored draws, of all sites together.

    ``predict`` takes the draws in an order that depends on its seed, and each of them once in every S draws: with
    ``num_samples=S`` the average is over all, with fewer over some, none twice. ``mean_only`` and ``to_lora`` take
    their mean. The draws are buffers, S·D numbers that ``save`` and ``load`` keep, and nothing of the guide is trained.
    ``fit`` trains what is left, the head and the likelihood, under the draws; the "KL" is then a constant of it.

    :func:`bayes_adapters.samplers.langevin`, :func:`bayes_adapters.samplers.nuts` and, of trained members,
    :func:`bayes_adapters.surgery.ensemble.ensemble` return such a guide. :meth:`of` makes one of any samples, such as
    ``pyro.infer.MCMC.get_samples()``.

    Args:
        model: a model whose random parts are weights.
        num_draws: S; until there are others, each is where the model lets its sites start.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.models import StochasticDown
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> guide = StoredDraws.of(model, {"A.global": torch.randn(5, 2, 2, 8)})  # five draws of A in two layers
    >>> predict(model, guide, Batch({"input_ids": torch.tensor([[3, 5]])}), num_samples=5).num_samples
    5
    """

    name: ClassVar[str] = "stored_draws"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL
    all_reals: ClassVar[bool] = False
    serves_hyper: ClassVar[bool] = False

    def __init__(self, model: AdapterModel, *, num_draws: int = 1) -> None:
        super().__init__(model)
        whole_number("num_draws", num_draws)
        self.register_buffer("draws", self.start().detach().expand(num_draws, -1).clone())

    @classmethod
    def of(cls, model: AdapterModel, samples: Mapping[str, Tensor]) -> StoredDraws:
        """Return the guide of these draws.

        Args:
            model: the model.
            samples: site → draws, shape (S, *shape of the site); others, of hyper-parameters, are left out.

        Raises:
            ConfigError: a site has no draws, or draws of another shape or number.
        """
        count = require_draws_of(samples, model.sites)
        with generators_kept(model):  # a start may be drawn, and is not kept
            guide = cls(model, num_draws=count)
        for site in model.sites:
            flat = samples[site.name].detach().reshape(count, prod(site.shape))
            guide.values[:, guide.layout[site.name]] = flat.to(guide.values)
        return guide

    @property
    def values(self) -> Float[Tensor, "S D"]:
        """The draws, their entries in the order of ``layout``."""
        return self.get_buffer("draws")

    @property
    def deterministic(self) -> bool:
        return len(self.values) == 1

    def joint(self) -> TorchDistributionMixin:
        return Points(self.values)

    def config(self) -> dict[str, Any]:
        return {"num_draws": len(self.values)}
