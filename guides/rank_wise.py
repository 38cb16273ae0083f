"""``RankWise``: a Gaussian over A and B with one variance a rank, so that ranks can be switched off (BayesLoRA)."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.guides._checks import check_log_variance, require_untraced
from bayes_adapters.inference._checks import require_one_function
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import SITE, Granularity, Part, Site, SiteCall

_LOWEST, _HIGHEST = -20.0, 2.0


class RankWise(AdapterGuide):
    """``q(A_ij) = N(M_ij, σ_i²)``, ``q(B_ki) = N(L_ki, σ_i²)``: row i of A and column i of B share one variance.

    With the log-uniform prior the KL of an entry falls as its dropout rate ``σ²/μ²`` grows: ranks that the data do not
    need get a large rate, and :mod:`bayes_adapters.surgery.pruning` takes them out. Tied variances cost r parameters a
    layer.

    ``local_reparametrisation``, in the guide's training mode only: instead of one (A, B) a step, every example b has
    noise of its own, in the rank space for A and given z for B::

        z = M x + (σ_A ∘ ε_b) x ~ N(M x, σ_A² x²)        B A x = L z + (σ_B ∘ η_b) z ~ N(L z, σ_B² z²) given z

    The loss of an example has the distribution that plain draws give it, and the gradient of a batch less noise. It is
    no function of x that could be drawn again, so prediction, ``guide.eval()``, draws weights. The value of a site is
    then its mean, and the KL must be the closed form, or an average over draws of its own where a prior has none
    (StudentT): ``bayes_adapters.ELBO`` does that. Pyro's own ELBOs would score the mean as a draw, on a second pass
    without noise; they are refused. (BayesLoRA's code draws every output and token of ``B A x`` independently, from a
    Gaussian of its mean and variance. Noise of A has rank r, and the loss under independent noise is another one.)

    Source: BayesLoRA, arXiv 2506.22809 v3, and its released code (log σ² = −8 at the start; −12 in v2).

    Args:
        model: a model with a random A, B or both, such as StochasticFactors.
        init_log_variance: log σ² at the start, natural log of a variance, in [-20, 2]; training clamps it there.
        tie: share variances as above; False gives every entry of A and B its own.
        local_reparametrisation: see above; False draws weights, one A and B a step.

    Raises:
        ConfigError: ``init_log_variance`` out of range; in training mode with ``local_reparametrisation``, a run that
            is traced, as Pyro's own ELBOs do.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticFactors
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticFactors(BertModel(tiny), Bernoulli(), num_data=100, rank=2, targets=["query"])
    >>> sorted(tuple(value.shape) for value in RankWise(model).parameters())
    [(1, 2, 8), (1, 8, 2), (2,)]
    """

    name: ClassVar[str] = "rank_wise"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.A, Part.B})

    def __init__(
        self,
        model: AdapterModel,
        *,
        init_log_variance: float = -8.0,
        tie: bool = True,
        local_reparametrisation: bool = False,
    ) -> None:
        super().__init__(model)
        require_one_function("RankWise(local_reparametrisation=True)", local_reparametrisation, model.likelihood)
        check_log_variance(init_log_variance, _LOWEST, _HIGHEST)
        self.init_log_variance, self.tie = float(init_log_variance), tie
        self.local_reparametrisation = local_reparametrisation
        self.loc = nn.ParameterDict({site_key(s): nn.Parameter(model.start(s)) for s in model.sites})
        self.log_variance = nn.ParameterDict()
        for site in model.sites:
            loc = self.loc[site_key(site)]
            for key in _layer_keys(site) if tie else [site_key(site)]:
                if key not in self.log_variance:
                    start = loc.new_full((site.rank,) if tie else site.shape, self.init_log_variance)
                    self.log_variance[key] = nn.Parameter(start)

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        loc = self.loc[site_key(call.site)]
        scale = (0.5 * self._log_variance(call.site).clamp(_LOWEST, _HIGHEST)).exp().expand_as(loc)
        if self.local_reparametrisation and self.training:
            call.scale = scale
        return dist.Normal(loc, scale, validate_args=False).to_event(len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {
            "init_log_variance": self.init_log_variance,
            "tie": self.tie,
            "local_reparametrisation": self.local_reparametrisation,
        }

    def rank_parameters(self, site: Site) -> list[tuple[nn.Parameter, int]]:
        """List the parameters of a site of one layer that have a rank axis, and which axis, for pruning."""
        axis = -1 if site.part == Part.B else -2
        own = (self.loc[site_key(site)], axis)
        if self.tie:
            return [own, (self.log_variance[_layer_keys(site)[0]], -1)]
        return [own, (self.log_variance[site_key(site)], axis)]

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        call: SiteCall | None = msg["infer"].get(SITE)
        if call is None or call.scale is None or msg["value"] is not None:
            return
        require_untraced()
        msg["value"] = call.point = msg["fn"].mean

    def _log_variance(self, site: Site) -> Float[Tensor, "L m n"]:
        if not self.tie:
            return self.log_variance[site_key(site)]
        each = torch.stack([self.log_variance[key] for key in _layer_keys(site)])
        return each[:, None, :] if site.part == Part.B else each[:, :, None]


def _layer_keys(site: Site) -> list[str]:
    return [path.replace(".", "-") for path in site.layers]
