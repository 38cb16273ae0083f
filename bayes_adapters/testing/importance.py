"""How good an approximation a guide is, by its importance weights: Pareto-smoothed importance sampling.

Weights ``p(y, w) / q(w)`` of draws w ~ q. The shape k̂ of a generalised Pareto distribution fitted to the largest of
them says how heavy their tail is: below 0.5 q covers the posterior, above 0.7 it misses a part of it, and expectations
under q are not those under the posterior however many draws there are.

Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", arXiv 1507.02646.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.distributions import Points, base_distribution
from bayes_adapters.errors import ConfigError, missing_package, whole_number
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.inference.joint import JOINT
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.sites import SITE
from bayes_adapters.testing.report import NotApplicableError


@dataclass(frozen=True)
class Importance:
    """Importance weights of a guide's draws.

    Args:
        log_weights: shape (S,) for weights, (S, B) for local latents, float64: log p(y, w_s) − log q(w_s), nats.
        khat: k̂, shape () or (B,), float64.
        log_evidence: the smoothed estimate of log p(y), shape () or (B,), nats.
    """

    log_weights: Tensor
    khat: Tensor
    log_evidence: Tensor

    @property
    def verdict(self) -> str:
        """``"good"`` (k̂ < 0.5), ``"usable"`` (< 0.7) or ``"unreliable"``, of the worst k̂."""
        worst = float(self.khat.max())
        return "good" if worst < 0.5 else "usable" if worst < 0.7 else "unreliable"


@exclusive()
def importance(
    model: AdapterModel, guide: AdapterGuide, data: Batch | Iterable[Batch], *, num_samples: int = 1000, seed: int = 0
) -> Importance:
    """Return the importance weights of S draws of the guide, and k̂.

    Formula: for weights ``log r_s = Σ_n log p(y_n | x_n, w_s) + log p(w_s) − log q(w_s)``, over all examples of the
    data; for local latents one ratio per example. k̂ and the smoothed weights are ArviZ's (``arviz.psislw``).

    Args:
        model: the model; its modes are left as they are.
        guide: its guide.
        data: all examples of the data set, with targets: one batch, or batches. Weights have the same draws in all.
        num_samples: S; the estimate of k̂ is rough below some hundreds.
        seed: of the draws.

    Raises:
        ConfigError: another model's guide, no targets, or ``num_samples`` below 25.
        NotApplicableError: the posterior is a point, stored draws or its own prior's, global and local sites occur
            together, or the prior has hyper-parameters.
        MissingResourceError: arviz is not installed.

    >>> from bayes_adapters import guides
    >>> from bayes_adapters.sites import Granularity, Part
    >>> from bayes_adapters.testing.linear_gaussian import LinearGaussian
    >>> target = LinearGaussian(Part.DIAGONAL, Granularity.GLOBAL)
    >>> model = target.make_model()
    >>> found = importance(model, guides.MeanField(model, init_scale=0.5), target.batch, num_samples=200)
    >>> found.log_weights.shape, abs(float(found.log_evidence) - target.log_evidence) < 2.0
    (torch.Size([200]), True)
    """
    arviz = _arviz()
    require_pair(model, guide)
    whole_number("num_samples", num_samples, 25)
    kinds = {site.granularity == "global" for site in model.sites}
    if len(kinds) != 1 or guide.hyper is not None or guide.head_posterior is not None or guide.deterministic:
        raise NotApplicableError(
            "Importance weights need sites that are all global or all local, without hyper-parameters and without a "
            f"head of random weights, and draws; {type(guide).__name__} on this {type(model).__name__} has others."
        )
    (whole,) = kinds
    batches = [data] if isinstance(data, Batch) else list(data)
    ratios = [_ratios(model, guide, batch, num_samples, seed, whole) for batch in batches]
    if whole:
        latent = ratios[0][1]
        log_weights = torch.stack([likelihood.sum(1) for likelihood, _ in ratios]).sum(0) + latent
    else:
        log_weights = torch.cat([likelihood + latent for likelihood, latent in ratios], 1)
    smoothed, khat = arviz.psislw(log_weights.movedim(0, -1).numpy(), normalize=False)
    evidence = torch.logsumexp(torch.as_tensor(smoothed), -1) - torch.tensor(float(num_samples)).log()
    return Importance(log_weights, torch.as_tensor(khat).double(), evidence.double())


@torch.no_grad()
def _ratios(
    model: AdapterModel, guide: AdapterGuide, batch: Batch, samples: int, seed: int, whole: bool
) -> tuple[Tensor, Tensor]:
    """Log p(y | x, w), shape (S, B), and log p(w) − log q(w), shape (S,) or (S, B); float64."""
    if batch.targets is None:
        raise ConfigError("Importance weights need batch.targets.")
    numbers = torch.arange(samples)
    with evaluating(model, guide), KeyedDraws(seed, numbers, batch.ids), pyro.plate("draws", samples, dim=-2):
        guide(batch)
    model_trace, guide_trace = guide.get_traces()
    guide.trace = type(guide.trace)()
    nodes: dict[str, Any] = model_trace.nodes
    total = torch.zeros(samples, 1 if whole else batch.size).double()
    latent: dict[str, Any] = guide_trace.nodes
    for name, node in latent.items():
        if node["type"] != "sample" or node["is_observed"]:
            continue
        if isinstance(base_distribution(node["fn"]), Points):
            raise NotApplicableError("Importance weights need a density; a posterior that is stored draws has none.")
        if SITE in node["infer"]:
            total = total + nodes[name]["fn"].log_prob(node["value"]).double()
        if name == JOINT or JOINT not in latent:
            total = total - node["fn"].log_prob(node["value"]).double()
    likelihood = nodes["obs"]["fn"].log_prob(nodes["obs"]["value"]).double()
    return likelihood, total[:, 0] if whole else total


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise missing_package("importance()", "arviz", "arviz") from error
    return arviz
