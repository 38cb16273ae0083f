"""Building a published system around a LoRA that is already trained, such as one of PEFT's."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import remove
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.files.marks import Marks
from bayes_adapters.files.peft import from_peft
from bayes_adapters.guides._head import PosteriorHead
from bayes_adapters.heads import Head
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site
from bayes_adapters.surgery.switching import activate
from bayes_adapters.systems._build import build
from bayes_adapters.systems._start_checks import (
    no_place,
    require_fitting,
    require_placed,
    require_startable,
    tells_mean,
)

_FACTORS = (Part.A, Part.B)


@torch.no_grad()
def start(
    name: str, lora: AdapterModel, *, num_data: int | None = None, **overrides: Any
) -> tuple[AdapterModel, AdapterGuide]:
    """Build a system whose mean prediction is that of the trained ``lora``, to be trained from there.

    A and B are the LoRA's: as they are where they are parameters, as the posterior's location where they are random
    (BLoB's A). A core starts at E = I, its diagonal at 1: a network that gives its mean (C-LoRA, CALIBER) has a last
    layer of zero weights and the bias ``vec(I − E_p[E])`` for it. Standard deviations start as in :func:`build`. Head
    and likelihood are copies. Under the usual prior N(0, 0.2²) the KL of a core at I is 12.5 r nats above that of a
    core at 0. Take a small ``kl_weight``, as the systems' recipes do, or the prior
    ``bayes_adapters.priors.identity_normal``.

    Args:
        name: of a system with one backbone, such as ``"blob"``, ``"c-lora"``, ``"scalabl"`` or ``"caliber-x"``.
        lora: a model without random parts, such as one of :func:`bayes_adapters.files.peft.from_peft`. The new model
            takes its backbone; ``bayes_adapters.surgery.switching.activate(lora)`` gives it back.
        num_data: N, the size of the training set, which posteriors over weights need.
        **overrides: as for :func:`build`; layers, ranks, scale and head are the LoRA's.

    Returns:
        ``(model, guide)`` in the modes that :func:`build` leaves them in.

    Raises:
        ConfigError: ``lora`` is random or no LoRA, or its adapters are not in its backbone; an option is the LoRA's;
            the system has parts that no LoRA says the start of. The LoRA is then as it was.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> lora, batch = LoRA(BertModel(tiny), Bernoulli(), rank=2), Batch({"input_ids": torch.tensor([[3, 5, 7]])})
    >>> before = predict(lora, Delta(lora), batch).probs
    >>> model, guide = start("blob", lora, num_data=100)
    >>> torch.allclose(predict(model, guide, batch, mean_only=True).probs, before, atol=1e-6)
    True
    """
    require_startable(name, lora, overrides)
    factors = {path: as_lora(layer) for path, layer in lora.installed.items()}
    kept = {key: value for key, value in lora.config().items() if key in ("rank", "alpha", "dropout", "ranks")}
    kept["targets"] = Targets("|".join(re.escape(path) for path in factors))
    kept |= {"pooling": lora.pooling} if lora.own_head else {"head": lora.head.fresh()}
    try:
        with unwrapped(lora):
            backbone = remove(lora.backbone)
            model, guide = build(name, backbone, copy.deepcopy(lora.likelihood), num_data=num_data, **kept | overrides)
        _place(name, model, guide, factors)
    except BaseException:
        activate(lora)
        raise
    model.head = copy.deepcopy(lora.head)
    Marks.of(lora).put_on(model)
    model.backbone = lora.backbone  # in its wrapper, if it has one
    return model, guide


@torch.no_grad()
def start_at(model: AdapterModel, guide: AdapterGuide, lora: AdapterModel) -> None:
    """Let a pair that was built by hand start at the trained ``lora``: :func:`start` for any model and guide.

    As in :func:`start`, A and B become the LoRA's, parameters or the posterior's location, a core starts at I, a
    diagonal at 1; standard deviations stay. The head becomes the LoRA's.

    Args:
        model: with the LoRA's layers, ranks and scale, such as ``Targets``, ``rank`` and ``alpha`` of the LoRA give;
            its adapters in its backbone, and a head of the LoRA's kind.
        guide: made for it: one with a location for each site (MeanField, RankWise, Delta, Contextual, …) or for all
            weights (LowRank, FullGaussian, MatrixNormal).
        lora: as for :func:`start`; its own adapters may be out of their backbone.

    Raises:
        ConfigError: the LoRA is random, or has other layers, ranks, scales or another head; or the guide has a mean
            that is no parameter of it.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.guides import Delta, LowRank
    >>> from bayes_adapters.models import LoRA, StochasticFactors
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> lora, batch = LoRA(BertModel(tiny), Bernoulli(), rank=2), Batch({"input_ids": torch.tensor([[3, 5, 7]])})
    >>> before = predict(lora, Delta(lora), batch).probs
    >>> model = StochasticFactors(remove(lora.backbone), Bernoulli(), rank=2, num_data=100)
    >>> guide = LowRank(model, covariance_rank=2)
    >>> start_at(model, guide, lora)
    >>> torch.allclose(predict(model, guide, batch, mean_only=True).probs, before, atol=1e-6)
    True
    """
    require_pair(model, guide)
    require_fitting(model, lora)
    factors = {path: as_lora(layer) for path, layer in lora.installed.items()}
    own = [p for layer in model.installed.values() for p in (layer.lora_A, layer.lora_B) if p is not None]
    before = [(value, value.detach().clone()) for value in (*own, *guide.parameters())]
    try:
        _place(type(guide).__name__, model, guide, factors)
        if all(site.granularity is Granularity.GLOBAL for site in model.sites):
            wanted = {site.name: _value("", site, factors) for site in model.sites}
            with tells_mean(guide):
                found = weight_mean(model, guide)
            require_placed(guide, found, wanted)
    except BaseException:
        for value, old in before:
            value.copy_(old)
        raise
    model.head.load_state_dict(lora.head.state_dict())
    Marks.of(lora).put_on(model)


def start_from_peft(
    name: str,
    directory: str | Path,
    backbone: nn.Module,
    likelihood: Likelihood,
    *,
    num_data: int | None = None,
    head: bool | Head | None = None,
    leave_out: str | None = None,
    write_backbone: bool = False,
    **overrides: Any,
) -> tuple[AdapterModel, AdapterGuide]:
    """Build a system whose mean prediction is that of the LoRA in a folder of PEFT: ``from_peft``, then :func:`start`.

    Methods that begin with a trained model and its data take the LoRA itself: ``bayesianise`` (TFB) and ``laplace``
    after ``from_peft``.

    Args:
        name: as for :func:`start`.
        directory: as for :func:`bayes_adapters.files.peft.from_peft`, and so the next five.
        backbone: the plain one; adapted in place.
        likelihood: any.
        num_data: N, the size of the training set, which posteriors over weights need.
        head: whether the head that was trained along is taken over, or another in its place.
        leave_out: the half of an encoder–decoder that the backbone is not.
        write_backbone: whether trained weights of the backbone itself are written into it.
        **overrides: as for :func:`start`.

    Returns:
        ``(model, guide)``.

    Raises:
        AdapterFileError: the folder cannot be read as a LoRA of this backbone.
        ConfigError: as :func:`start`. The backbone is then without adapters, and holds what it held: with
            ``write_backbone`` its weights are in memory twice until the system is built.

    Warns:
        UserWarning: the model has a fresh head.
    """
    before: dict[str, Tensor] = {}
    if write_backbone and isinstance(backbone, nn.Module):
        with unwrapped(backbone) as plain:
            before = {key: value.clone() for key, value in plain.state_dict().items()}
    lora = from_peft(directory, backbone, likelihood, head=head, leave_out=leave_out, write_backbone=write_backbone)
    try:
        return start(name, lora, num_data=num_data, **overrides)
    except BaseException:
        with unwrapped(backbone) as plain:
            remove(plain)
            if before:  # else a second try would add the biases of lora_bias once more
                plain.load_state_dict(before)
        raise


def _place(name: str, model: AdapterModel, guide: AdapterGuide, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Let parameters and posterior means start at ``factors``, layer path → A and B."""
    for path, layer in model.installed.items():
        for part, value in zip(_FACTORS, factors[path], strict=True):
            if part not in layer.sites:
                layer.get_parameter(f"lora_{part.name}").copy_(value)
    for site in model.sites:
        _locate(guide, site, _value(name, site, factors), model.prior.of(site))


def _value(name: str, site: Site, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor | None:
    """Return where the mean of ``site`` is, shape ``site.shape``; None for a mask, whose posterior is its prior."""
    if site.part in _FACTORS:
        return torch.stack([factors[path][_FACTORS.index(site.part)] for path in site.layers]).reshape(site.shape)
    if site.part == Part.CORE:
        return torch.eye(site.rank).expand(site.shape)
    if site.part == Part.DIAGONAL:
        return torch.ones(site.shape)
    if site.part == Part.MASK:
        return None
    raise no_place(name, site)


def _locate(guide: AdapterGuide, site: Site, value: Tensor | None, prior: Any) -> None:
    """Let the posterior of ``site`` start with the mean ``value``."""
    if value is None:
        return
    key = site_key(site)
    heads, places = getattr(guide, "heads", {}), getattr(guide, "loc", {})
    if key in heads and isinstance(heads[key], PosteriorHead):
        last, count = heads[key].net[-1], site.rank**2
        centre = torch.nan_to_num(prior.mean, nan=0.0, posinf=0.0, neginf=0.0).to(value)
        last.weight[:count].zero_()
        last.bias[:count].copy_((value - centre).reshape(-1))
    elif isinstance(guide, JointGuide) and isinstance(places, nn.Parameter) and places.shape == (guide.size,):
        places[guide.layout[site.name]] = value.flatten().to(places)
    elif isinstance(places, nn.ParameterDict) and key in places and places[key].shape == value.shape:
        places[key].copy_(value.log() if getattr(guide, "positive_mean", False) else value)
    else:
        raise no_place(type(guide).__name__, site)
