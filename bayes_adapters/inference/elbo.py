"""The evidence lower bound as a module: ``loss = elbo(batch)``, in nats per datum.

Formula (per datum, B examples of N)::

    loss = − (1/B) Σ_b E_q log p(y_b | x_b, E)  +  w · [ (1/B) Σ_b KL_local,b  +  (1/N) KL_global ]

The model's density is that of all N examples; this is its negative ELBO divided by N, so that learning rates and
clipping do not depend on N. The KL is analytic wherever Pyro or torch has a closed form; local latents count once per
example with padding masked; global ones, hyper-parameters of the prior among them, once per data set. A KL evaluated at
sampled upstream states is the chain rule's estimator: exact within a layer, one draw over the layers before it. w = 1
is the ELBO, anything else tempers it. Where a head infers weights of its own, log p(y_b | x_b, E) may be an average
over them, which the head then knows in closed form or by quadrature (``Head.expectation``); their KL is a global one.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, choice, integer, whole_number
from bayes_adapters.inference._guide_checks import require_gradient
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.divergence import divergence, scale_statistics
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KLMode, KLWeight
from bayes_adapters.inference.joint import JOINT, JointGuide, joint_kl
from bayes_adapters.inference.model import EXPECTED, AdapterModel
from bayes_adapters.inference.step_noise import StepNoise
from bayes_adapters.schedules import KLSchedule, as_schedule
from bayes_adapters.sites import SITE, Asked, SiteCall, asking


@dataclass(frozen=True)
class ElboTerms:
    """The parts of one evaluation; tensors are scalars that carry gradients.

    Args:
        loss: ``nll + kl``.
        nll: expected negative log-likelihood, nats per datum.
        kl: the weighted and, in mode ``per_token_mean``, normalised KL, nats per datum.
        kl_weight: w.
        scales: site → posterior standard deviations (mean, minimum, maximum) of the cores that have a KL, which
            padding and examples that lack a path's modality have not; computed on demand.
        measures: what the model measures of the draws (``AdapterModel.measures``); computed on demand.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    kl_weight: float
    scales: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)

    def log(self) -> dict[str, float]:
        """Return loss, nll, kl, kl / nll and, if present, measures and the mean, minimum and maximum scale."""
        loss, nll, kl = torch.stack([self.loss.detach(), self.nll.detach(), self.kl.detach()]).tolist()
        out = {
            "loss": loss,
            "nll": nll,
            "kl": kl,
            "kl_over_nll": kl / nll if nll else float("nan"),
            "kl_weight": self.kl_weight,
        } | self.measures
        if self.scales:
            values = list(self.scales.values())
            out |= {
                "scale_mean": sum(v[0] for v in values) / len(values),
                "scale_min": min(v[1] for v in values),
                "scale_max": max(v[2] for v in values),
            }
        return out


class ELBO(nn.Module):
    """The negative ELBO of a model and a guide as a module, for any torch optimiser.

    Args:
        model: the model.
        guide: the guide made for it.
        kl_weight: w, a number or a schedule step → w.
        kl_mode: ``full`` (the ELBO) or ``per_token_mean``.
        num_particles: Monte Carlo draws of the latents per evaluation, folded into one backbone pass.
        recompute: keep each token's feature only, rather than its posterior and its core, and compute them once more in
            backward with the same noise: the same loss and gradients, less memory, more time. A site in a block that is
            checkpointed does so in any case.
        seed: makes draws a function of (seed, step, site, particle), local ones also of the example's number
            (``batch.index``) and token: all processes, and all micro-batches of a step, then see one draw of the
            weights, as ``DistributedDataParallel(ELBO(model, guide, seed=0))(batch, step)`` needs it. See
            :class:`~bayes_adapters.inference.step_noise.StepNoise`. None draws with torch's generator.

    Raises:
        ConfigError: the guide belongs to another model, or an option is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, guides, models
    >>> net = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model = models.StochasticCore(net, Bernoulli(), rank=2)
    >>> elbo = ELBO(model, guides.MeanField(model))
    >>> optimiser = torch.optim.AdamW([p for p in elbo.parameters() if p.requires_grad])
    >>> loss = elbo(Batch({"input_ids": torch.randint(50, (3, 5))}, targets=torch.ones(3)))
    >>> loss.backward()
    >>> optimiser.step()
    """

    def __init__(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        *,
        kl_weight: float | KLSchedule = 1.0,
        kl_mode: KLMode | str = KLMode.FULL,
        num_particles: int = 1,
        recompute: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        require_pair(model, guide)
        whole_number("num_particles", num_particles)
        self.seed = None if seed is None else integer("seed", seed)
        self.model, self.guide, self.recompute = model, guide, recompute
        self.kl_weight, self.kl_mode, self.num_particles = (
            as_schedule(kl_weight),
            choice(KLMode, "kl_mode", kl_mode),
            num_particles,
        )

    def forward(self, batch: Batch, step: int = 0) -> Tensor:
        """Return the loss, a scalar in nats per datum, at optimiser step ``step``, which sets KL weight and noise."""
        return self.terms(batch, step).loss

    def terms(self, batch: Batch, step: int = 0, *, with_scales: bool = False) -> ElboTerms:
        """Return the loss and its parts; ``with_scales`` adds statistics of the posterior's scales and its draws.

        Raises:
            ConfigError: the batch has no targets, or a posterior with parameters to train has no reparametrised draws.
        """
        if batch.targets is None:
            raise ConfigError("The ELBO needs batch.targets; to predict without targets use bayes_adapters.predict.")
        weight = self.kl_weight(step)
        per_datum, count = 1.0 / self.model.data_size(batch), self.num_particles
        noise = nullcontext() if self.seed is None else StepNoise(self.seed, step, count, batch.ids)
        what = Asked(with_scales, self.recompute)
        with asking(what), KLWeight(weight, self.kl_mode), poutine.scale(scale=per_datum), noise:
            if count == 1 and self.seed is None:
                self.guide(batch)
            else:
                with pyro.plate("particles", count, dim=-2), poutine.scale(scale=1.0 / count):
                    self.guide(batch)
        model_trace, guide_trace = self.guide.get_traces()
        self.guide.trace = Trace()
        observed: Any = model_trace.nodes["obs"]
        nll = -_sum(_log_likelihood(observed), observed)
        kl = nll.new_zeros(())
        joint: Any = guide_trace.nodes.get(JOINT)
        joined = self.guide.layout if joint is not None and isinstance(self.guide, JointGuide) else {}
        for name, site in guide_trace.nodes.items():
            if site["type"] != "sample" or name in joined:
                continue
            require_gradient(name, site)
            if name == JOINT:
                parts = {name: model_trace.nodes[name] for name in joined if name in guide_trace.nodes}
                kl = kl + _sum(joint_kl(site, parts), site)
            else:
                kl = kl + _kl(site, model_trace.nodes[name])
        if not with_scales:
            return ElboTerms(nll + kl, nll, kl, weight)
        nodes: Any = guide_trace.nodes
        draws = {
            site.name: nodes[site.name]["value"].detach()
            for site in self.model.sites
            if site.name in nodes and nodes[site.name]["infer"][SITE].summary is None
        }
        return ElboTerms(nll + kl, nll, kl, weight, _scale_statistics(guide_trace), self.model.measures(draws))


def _log_likelihood(observed: Any) -> Tensor:
    """Log p(y | draw), or its expectation over the head's own weights where the head knows it; shape of the batch."""
    fn, expected = observed["fn"], observed["infer"].get(EXPECTED)
    return fn.log_prob(observed["value"]) if expected is None else expected().reshape(fn.batch_shape)


def _sum(value: Tensor, site: Any) -> Tensor:
    return scale_and_mask(value, scale=site["scale"], mask=site["mask"]).sum()


def _kl(guide_site: Any, model_site: Any) -> Tensor:
    call: SiteCall | None = guide_site["infer"].get(SITE)
    known = None if call is None or call.summary is None else call.summary.divergence
    return _sum(divergence(guide_site, model_site["fn"]) if known is None else known, guide_site)


def _scale_statistics(trace: Trace) -> dict[str, tuple[float, float, float]]:
    out: dict[str, tuple[float, float, float]] = {}
    nodes: dict[str, Any] = trace.nodes
    for name, site in nodes.items():
        call: SiteCall | None = site["infer"].get(SITE) if site["type"] == "sample" else None
        if call is None:
            continue
        known = scale_statistics(site) if call.summary is None else call.summary.scales
        if known is not None:
            mean, least, most = known.tolist()
            out[name] = (mean, least, most)
    return out
