"""Whether a posterior is more than a point: its width beside its prior's, and what its draws add to the answers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.errors import PointPosteriorWarning
from bayes_adapters.inference._checks import require_batch
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference._sources import OwnGuide
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.joint import JOINT, JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.inference.tempering import temperature_of
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.sites import SITE, SiteCall


@exclusive()
@torch.no_grad()
def relative_widths(
    model: AdapterModel, guide: AdapterGuide, batch: Batch, *, temperature: float | None = None
) -> dict[str, float]:
    """Return how wide the posterior of each site is beside its prior: site → median over entries of ``σ_q / σ_p``.

    Formula: ``median √(τ Var_q[w_i] / Var_p[w_i])`` over the entries i of a site, and of a local one over the real
    tokens of ``batch``, later sites given the means of the earlier ones. 1 is the prior's width: the data have said
    nothing of it. Near 0 the posterior is a point.

    Args:
        model: the model; its modes are left as they are.
        guide: the guide made for it.
        batch: what local posteriors look at; targets are not.
        temperature: τ, see :func:`bayes_adapters.predict`.

    Returns:
        A ratio per site whose two variances are known and finite: not a mask's, nor one under a Cauchy.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> widths = relative_widths(model, MeanField(model, init_scale=0.05), Batch({"input_ids": torch.tensor([[3, 5]])}))
    >>> {name: round(ratio, 3) for name, ratio in widths.items()}  # the prior's standard deviation is 0.2
    {'A.global': 0.25}
    """
    require_pair(model, guide)
    require_one_device(model, guide)
    require_batch(batch)
    temperature = temperature_of(guide, temperature)
    batch = batch.to(next(model.parameters()).device).without_targets()
    with evaluating(model, guide):
        nodes = OwnGuide(model, guide, mean_only=True, seed=0).nodes(batch, torch.zeros_like(batch.ids[:1]), batch.ids)
    whole = _variance(nodes[JOINT]["fn"]) if JOINT in nodes else None
    found: dict[str, float] = {}
    for site in model.latent_sites:
        node = nodes.get(site.name)
        if node is None or not site.part.real:
            continue
        q, p = _variance(node["fn"]), _variance(node["infer"]["prior"])
        if whole is not None and isinstance(guide, JointGuide) and site.name in guide.layout:
            q = whole.flatten()[guide.layout[site.name]].reshape(site.shape)
        if q is None or p is None or not bool(p.isfinite().all()):
            continue
        ratios = (temperature * q / p).sqrt()
        call: SiteCall = node["infer"][SITE]
        if call.token_mask is not None:
            single: list[Any] = [slice(None)] * len(site.event)
            ratios = ratios.expand(node["fn"].shape())[(..., call.token_mask, *single)]
        if ratios.numel() and bool(ratios.isfinite().all()):
            found[site.name] = float(ratios.median())
    return found


def _variance(fn: Any) -> Tensor | None:
    try:
        variance: Tensor = fn.variance
    except (NotImplementedError, AttributeError):
        return None
    return variance


def warn_of_a_point(
    widths: Mapping[str, float], prediction: Prediction, *, narrow: float = 0.1, share: float = 0.01
) -> str | None:
    """Warn in one line, with figures, where a posterior is little more than a point; return the line.

    Args:
        widths: of :func:`relative_widths`; the narrowest site counts.
        prediction: by draws of the posterior, on data that were not trained on.
        narrow: the smallest median ``σ_q / σ_p`` of a site that raises nothing.
        share: the smallest share of the epistemic part in the total uncertainty, each averaged over the examples.

    Warns:
        PointPosteriorWarning: a site is narrower, or the share is smaller.

    >>> answer = Prediction(torch.tensor([0.9]), torch.tensor([0.3]), torch.tensor([0.2]), torch.tensor([0.1]), 8)
    >>> warn_of_a_point({"A.global": 0.4}, answer) is None
    True
    """
    said = []
    slim = {name: ratio for name, ratio in widths.items() if ratio < narrow}
    if slim:
        worst = min(slim, key=slim.__getitem__)
        said.append(
            f"in {len(slim)} of {len(widths)} sites the standard deviation is below {narrow:g} of the prior's (median "
            f"over sites {median(widths.values()):.2g}, {worst!r} {slim[worst]:.2g})"
        )
    total, epistemic = (float(float64(part).mean()) for part in (prediction.total, prediction.epistemic))
    if epistemic < share * abs(total):
        said.append(f"draws add {epistemic:.2g} of {total:.3g} nats ({epistemic / abs(total):.2%})")
    if not said:
        return None
    text = (
        f"The posterior is little more than a point: {'; '.join(said)}. A larger kl_weight, prior or temperature "
        "widens it."
    )
    warnings.warn(text, PointPosteriorWarning, stacklevel=2)
    return text
