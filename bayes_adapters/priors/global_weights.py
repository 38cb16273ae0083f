"""A weight of the whole data set under local latents, so that part of what they do is learned once and for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.errors import positive_number, true_or_false
from bayes_adapters.priors._checks import require_local, require_square

if TYPE_CHECKING:
    from bayes_adapters.sites import Site


class GlobalWeights:
    """``W ~ N(M, s² I)`` once per layer and data set, ``E_i | W ~ N(W, t² I)`` for every example or token i.

    Density of N examples: ``Π_layers p(W_l) Π_i p(E_li | W_l) · Π_i p(y_i | x_i, E_i)``. With ``W = M + U`` the site
    ``weight.<site>`` is U, a hyper-parameter of the prior: it counts once per data set, E once per example.

    Posterior, of a guide whose own is centred at the prior's mean (:class:`bayes_adapters.guides.Contextual` and all of
    its kind)::

        q(U) = Π_j N(u_j, v_j²)          q(E_i | U, x_i) = N(M + U + μ(x_i), σ(x_i)²)

    Loss, per datum: ``−E log p(y | x, E) + KL_local + KL(q(U) ‖ p(U)) / N``, both closed; U drops out of the first::

        KL_local = ½ Σ_j [ (σ_j² + μ_j²) / t² − 1 − 2 log(σ_j / t) ]
        KL(q(U) ‖ p(U)) = ½ Σ_j [ (v_j² + u_j²) / s² − 1 − 2 log(v_j / s) ]

    What shrinks: v² with N, for every example tells of the one W. For ``y = b E + ε``, ε ~ N(0, σ_y²), the optimum is
    ``1/v² = 1/s² + N b²/σ_y²``. σ² does not: it is ``1 / (1/t² + b²/σ_y²)`` whatever N. So v is what the model does
    not know, and σ how much examples differ: ``predict(..., local_samples=K)`` tells the two apart.

    The optimum of v is narrower than the exact posterior, ``1/s² + N b²/(σ_y² + t² b²)``, as that of any q(E_i | x_i)
    which does not look at y_i; both shrink like 1/N, and t → 0 makes them equal.

    A posterior that does not look at the prior's mean (``MeanField`` of local cores) leaves W without effect.

    Args:
        scale: s > 0, standard deviation of an entry of W.
        local_scale: t > 0, standard deviation of an entry of E about W.
        identity: M is I for square weights, so that the prior adapter is plain LoRA, rather than 0.

    Raises:
        ConfigError: a scale is not positive; or, of a model, its random parts are weights of the data set themselves.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, guides, models, predict
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> options = {"rank": 2, "targets": ["query"], "granularity": "sequence", "num_data": 100}
    >>> model = models.StochasticCore(BertModel(tiny), Bernoulli(), prior=GlobalWeights(), **options)
    >>> guide = guides.Contextual(model)
    >>> batch = Batch({"input_ids": torch.randint(20, (3, 5))})
    >>> answer = predict(model, guide, batch, num_samples=4, local_samples=4)
    >>> answer.epistemic.shape, answer.local.shape  # what W leaves open, and what E adds given W
    (torch.Size([3]), torch.Size([3]))
    """

    name: ClassVar[str] = "global_weights"
    takes_site: ClassVar[bool] = True
    """The prior is called with the site, for its granularity."""

    def __init__(self, scale: float = 0.2, local_scale: float = 0.1, *, identity: bool = False) -> None:
        positive_number("scale", scale)
        positive_number("local_scale", local_scale)
        true_or_false("identity", identity)
        self.scale, self.local_scale, self.identity = scale, local_scale, identity

    def __call__(self, site: Site) -> TorchDistributionMixin:
        """Sample the site's U and return the prior of one draw of E given it: event shape ``site.event``."""
        require_local(site)
        centre = torch.zeros(site.event)
        deviation = dist.Normal(centre, torch.full(site.event, float(self.scale))).to_event(len(site.event))
        if self.identity:
            require_square(site)
            centre = torch.eye(site.event[0])
        weight = centre + pyro.sample(f"weight.{site.name}", deviation)
        return dist.Normal(weight, torch.full(site.event, float(self.local_scale))).to_event(len(site.event))

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {"scale": self.scale, "local_scale": self.local_scale, "identity": self.identity}
