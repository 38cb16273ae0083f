"""Fold the terms of a Wander trained with ``cp="product_of_sums"`` into one: the same function, fewer parameters."""

from __future__ import annotations

import copy

import torch

from bayes_adapters.devices import generators_kept
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.models import Wander
from bayes_adapters.models.multiplicative.factors import CP
from bayes_adapters.sites import SiteCall


@torch.no_grad()
def fold(model: AdapterModel, guide: AdapterGuide) -> tuple[Wander, AdapterGuide]:
    """Return a model and guide with one term, whose function or posterior over functions is that of ``model``.

    In ``Π_m (Σ_i G_m^(i)) … (Σ_j F_m^(j))`` only the sums appear, so ``Σ_i`` of the terms replaces them. A sum of
    independent Gaussians is a Gaussian: ``N(Σ μ_i, Σ σ_i²)``. (R − 1) M (r d) + (R − 1) r Σ L_m entries go. The
    prior of the result is its default one, not that of the sum: fold after training.

    Args:
        model: a Wander without low-rank adapters; its encoders are shared with the result.
        guide: ``Delta`` or ``MeanField``.

    Raises:
        ConfigError: another model, ``cp="sum_of_products"``, another guide or that of another model, or encoders with
            adapters.
    """
    require_pair(model, guide)
    if not isinstance(model, Wander):
        raise ConfigError(
            f"Only the terms of a Wander fold; got a {type(model).__name__}. For weights of an adapter take "
            "bayes_adapters.surgery.export.to_lora, and merge what it returns."
        )
    if model.rule.cp is not CP.PRODUCT_OF_SUMS:
        raise ConfigError(
            "cp='sum_of_products' does not fold: its R products are R different functions, and no single product "
            "equals their sum. Train with cp='product_of_sums' if the model is to be folded."
        )
    if not isinstance(guide, Delta | MeanField) or model.layers:
        raise ConfigError(
            f"Only Delta and MeanField fold, on encoders without low-rank adapters; got {type(guide).__name__} and "
            f"{len(model.layers)} adapted layers."
        )
    config = {k: v for k, v in model.config().items() if k not in ("terms", "targets", "dropout", "pooling")}
    # the small model starts at its default prior, whose draws have both signs
    options = {k: v for k, v in guide.config().items() if k != "positive_mean"}
    with generators_kept(model):  # initial values are drawn and then overwritten
        small = Wander(model.backbone, copy.deepcopy(model.likelihood), terms=1, **config)
        folded = type(guide)(small, **options)
    known = small.state_dict()
    small.load_state_dict({k: v for k, v in model.state_dict().items() if k in known})
    for site in model.sites:
        key = site_key(site)
        # the mean and not the parameter, which under a prior on a part of the reals is another number
        mean = guide.posterior(SiteCall(site, num_sites=len(model.sites)), model.prior.of(site)).mean
        folded.loc[key].copy_(mean.sum(1, keepdim=True))
        if isinstance(guide, MeanField) and isinstance(folded, MeanField):
            variance = guide.parameter.scale(guide.rho[key]).square().sum(1, keepdim=True)
            folded.rho[key].copy_(guide.parameter.rho(variance.sqrt()))
    folded.posterior_temperature = guide.posterior_temperature
    return small, folded
