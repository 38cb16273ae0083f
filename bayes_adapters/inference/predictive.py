"""Posterior-predictive sampling: probabilities and the split of uncertainty, by draws that can be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.conditions import read_together
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import FoldError, integer, whole_number
from bayes_adapters.inference._checks import named_non_finite
from bayes_adapters.inference._draw_checks import (
    check_draws,
    require_enough,
    require_predictable,
    require_ready,
    require_some,
    require_wrapped,
)
from bayes_adapters.inference._drawn import Drawn, draw
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._nested import nested
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference._sources import AnyGuide, Source, source_of
from bayes_adapters.inference._tolerance_checks import require_one_by_one
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.linearised_outputs import Linearisation as Linearisation
from bayes_adapters.inference.linearised_outputs import LinearisedOutputs, draws_at_once, read_linearised
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating as evaluating
from bayes_adapters.inference.tempering import temperature_of
from bayes_adapters.inference.tolerance import MOST, Tolerance
from bayes_adapters.likelihoods import Prediction

_BUDGET = 8192 * 384
"""Numbers in one layer's output that the draws of one pass may have together: 12 MB of float32."""


@exclusive()  # of the checks too: whose adapters are in the backbone may change between them and the first pass
def predict(
    model: AdapterModel,
    guide: AnyGuide,
    data: Batch | Iterable[Batch],
    *,
    num_samples: int | None = None,
    chunk_size: int | None = None,
    mean_only: bool = False,
    return_samples: bool = False,
    linearised: bool | Linearisation | str = False,
    seed: int | None = 0,
    temperature: float | None = None,
    local_samples: int = 1,
    tolerance: float | None = None,
) -> Prediction:
    """Average the likelihood's predictive over draws of the cores from the guide.

    Formula: ``p̄(y | x) = (1/S) Σ_s p(y | x, E_s)``, E_s ~ q; total = H[p̄], aleatoric = (1/S) Σ_s H[p(· | E_s)],
    epistemic = total − aleatoric, in nats. Draws are folded into the batch, several of them at a time, and only running
    sums are kept. What comes before the first adapted layer runs once for all draws of a pass, in the types of models
    that :mod:`bayes_adapters.backbones.prefix` knows. Where the trace of a pass holds nothing random (a point estimate)
    one pass stands for all draws.

    Args:
        model: the model; its modes, parameters and adapters are left as they are.
        guide: where the draws come from: the guide made for the model; any other callable Pyro guide, such as an
            autoguide, which is traced S times and must sample every site of the model; or a dictionary site → draws,
            shape (S, *shape of the site), such as ``MCMC.get_samples()``.
        data: one batch, or batches of one data set in order. Batches without ``index`` are numbered consecutively.
        num_samples: S; None means 16, 1000 with ``linearised="outputs"``, or all draws of a dictionary. Fewer of a
            dictionary are spread evenly over it.
        chunk_size: draws per backbone pass; memory grows with chunk_size × B. None takes as many as fit into 12 MB of
            one layer's output, or 1 where draws cannot share a pass: DeBERTa runs adapted layers on relative
            positions, which all draws have in common. No number depends on it. With ``linearised="outputs"`` or
            ``"probit"`` it is the examples whose Jacobians are held at one time, and None takes 64 MB of them.
        mean_only: replace the draws by one pass at the posterior mean of the cores (S = 1, epistemic 0); with an
            autoguide, at its median.
        return_samples: also return each draw's mean, shape (S, B, …).
        linearised: replace the outputs by their tangent at the posterior's mean, ``f(x; w) ≈ f(x; m) + J(x) (w − m)``:
            of a Gaussian posterior of covariance Σ they are then Gaussian with covariance J Σ Jᵀ. For a guide of this
            library over weights; the draws of w are those of ``linearised=False``. It takes one backward pass per
            output, or per example and output where a structure uses its weights in other ways, and none per draw.
            ``"outputs"`` draws each example's own outputs from that Gaussian, not weights: hundreds of draws cost next
            to nothing, and a regression on one number needs none. ``"probit"`` has a formula and no draws (S = 1); all
            uncertainty of classes is then aleatoric. Draws of different examples are no longer one function, so
            averages over examples within a draw mean nothing. See
            :class:`~bayes_adapters.inference.linearised_outputs.Linearisation`.
        seed: with a guide of this library noise is a function of (seed, site, sample, example index, token), so the
            result depends on neither batch nor chunk size; None draws with torch's generator. Another guide draws with
            torch's generator, seeded by (seed, sample) and put back afterwards; None takes the seed from it.
            ``pyro.sample`` statements in a model's own code are repeated as those of the adapters.
        temperature: τ of the posterior: every draw is ``m + √τ (w − m)``, about its mean m, so that a Gaussian has τ
            times its covariance: ``q^(1/τ)``. 1 is q itself; None takes the guide's ``posterior_temperature``, which
            :func:`bayes_adapters.training.tune` chooses on validation data and a saved adapter keeps; where nothing was
            chosen it is 1. See :class:`bayes_adapters.inference.tempering.Tempering`.
        local_samples: K: with each of the S draws of weights the latents of examples and tokens are drawn K times, the
            same K noises for every s. ``epistemic`` is then what the weights alone leave open,
            ``H[p̄] − (1/S) Σ_s H[p̄_s]`` with ``p̄_s = (1/K) Σ_k p(y | x, W_s, E_k)``; the rest is aleatoric, and
            ``local`` says which part of that the local latents make. It takes S · K draws. 1 makes no such difference.
        tolerance: draw until each number of an example's mean is known to this, > 0, a probability or in units of the
            target: ``t · sd(draws) / √S ≤ tolerance``, looked at after 8, 16, 32, … draws, so that with 95 % the mean
            of infinitely many is within it. ``num_samples`` is then the most that an example may take, 128 unless
            given. An example's answer is that of ``num_samples=S`` with its own S, which ``draws`` says; ``error``
            says how well it is known. See :class:`bayes_adapters.inference.tolerance.Tolerance`.

    Returns:
        A :class:`Prediction` over all examples, on the model's device.

    Raises:
        DataError: ``data`` holds no batch or something else, only some batches have targets, or targets lie outside
            the likelihood's support.
        NonFiniteError: an example's outputs, or what the likelihood makes of them, are NaN or infinite.
        ConfigError: ``num_samples``, ``chunk_size`` or ``local_samples`` below 1, a seed that is no integer; the guide
            belongs to another model, is on another device, or lacks a site; draws that do not fit the model; or local
            draws of a model that has no local latents; ``linearised`` of a model without random weights, or, but for
            ``True``, of a posterior that is no Gaussian.
        FoldError: ``chunk_size`` above 1 where draws cannot share a pass.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, guides, models
    >>> net = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> model = models.StochasticCore(net, Bernoulli(), rank=2)
    >>> found = predict(model, guides.Contextual(model), Batch({"input_ids": torch.randint(50, (3, 5))}))
    >>> found.probs.shape, found.num_samples, bool((found.total >= found.epistemic).all())
    (torch.Size([3]), 16, True)
    """
    require_wrapped(data)
    tangent = read_linearised(linearised)
    usual = 1000 if tangent is Linearisation.OUTPUTS else 16 if tolerance is None else MOST
    guide, samples = checked_draws(model, guide, num_samples, usual)
    if chunk_size is not None:
        whole_number("chunk_size", chunk_size)
    seed = None if seed is None else integer("seed", seed)
    temperature = temperature_of(guide, temperature)
    whole_number("local_samples", local_samples)
    source = source_of(model, guide, mean_only, seed, tangent, temperature, local_samples, chunk_size)
    samples = 1 if mean_only or tangent is Linearisation.PROBIT else samples
    device = next(model.parameters()).device
    if tolerance is not None:
        options = {"mean_only": mean_only, "return_samples": return_samples, "local_samples": local_samples > 1}
        require_one_by_one(model.likelihood, guide, options | {"linearised": tangent is not None})
        how: Callable[..., Prediction] = Tolerance(tolerance, samples).predict
    elif local_samples > 1:
        how = partial(_predict_nested, local_samples=local_samples)
    else:
        how = _predict_batch
    parts: list[Prediction] = []
    offset, alone = 0, False
    modules = [module for module in (model, guide) if isinstance(module, nn.Module)]
    with torch.no_grad(), evaluating(*modules), named_non_finite(*modules):
        for batch in [data] if isinstance(data, Batch) else data:
            require_predictable(batch)
            batch = batch.to(device)
            with read_together():
                model.accept(batch)
            ids = batch.ids + offset if batch.index is None else batch.ids
            offset += batch.size
            if isinstance(source, LinearisedOutputs):
                chunk = draws_at_once(model, batch, _BUDGET)
            else:
                chunk = chunk_size or (1 if alone else draws_per_pass(model, batch))
            try:
                part = how(model, source, batch, ids, samples, chunk, return_samples)
            except FoldError:
                if chunk_size is not None:
                    raise
                alone = True
                part = how(model, source, batch, ids, samples, 1, return_samples)
            parts.append(part)
    require_some(parts)
    return Prediction.concatenate(parts)


def checked_draws(model: AdapterModel, guide: Any, num_samples: int | None, usual: int) -> tuple[AnyGuide, int]:
    """Return the guide, and S, ``usual`` unless given; draws that are there already are thinned to S."""
    if num_samples is not None:
        whole_number("num_samples", num_samples)
    if isinstance(model, AdapterModel) and isinstance(guide, Mapping):
        model.require_installed()
        count = check_draws(guide)
        wanted = count if num_samples is None else num_samples
        require_enough(wanted, count)
        kept = torch.linspace(0, count - 1, wanted).round().long()
        return {str(name): value[kept.to(value.device)] for name, value in guide.items()}, wanted
    if isinstance(model, AdapterModel) and not isinstance(guide, AdapterGuide):
        model.require_installed()
        require_ready(guide)
    else:
        require_pair(model, guide)
        require_one_device(model, guide)
    return guide, usual if num_samples is None else num_samples


def draws_per_pass(model: AdapterModel, batch: Batch) -> int:
    """How many draws of ``batch`` fit into the budget: tokens × width for ids, its own size for another input.

    Where every token has an answer, a vocabulary of answers may be wider than the features. Where draws differ in the
    head only, and it sees one vector per example, that is all they have of their own.
    """
    width = model.feature_width(model.backbone)
    width = max(width, model.likelihood.num_outputs) if model.likelihood.per_token else width
    if not model.runs_each_sample and not model.likelihood.per_token:
        return max(1, _BUDGET // (batch.size * width))
    sizes = [v.numel() if v.is_floating_point() else v.numel() * width for v in batch.inputs.values()]
    return max(1, _BUDGET // max(sizes))


def _predict_batch(
    model: AdapterModel, source: Source, batch: Batch, ids: Tensor, samples: int, chunk: int, keep: bool
) -> Prediction:
    first, last = (0, samples if source.is_random(batch.without_targets()) else 1)
    drawn = draw(model, source, batch, ids, range(first, last), chunk, keep)
    if drawn.random and last < samples:  # a model's own code may draw, too
        drawn = drawn.and_(draw(model, source, batch, ids, range(last, samples), chunk, keep))
    result = drawn.predicted(model, batch, ids.device)
    extra: dict[str, Any] = {"num_samples": samples}
    if keep:
        whole = torch.cat(list(drawn.kept))
        extra["samples"] = whole if len(whole) == samples else whole.expand(samples, *whole.shape[1:]).clone()
    return replace(result, **extra)


def _predict_nested(
    model: AdapterModel,
    source: Source,
    batch: Batch,
    ids: Tensor,
    samples: int,
    chunk: int,
    keep: bool,
    local_samples: int,
) -> Prediction:
    """S draws of weights, K of local latents with each; draw s · K + k has weights s and local noise k."""
    whole = Drawn()
    parts: list[Prediction] = []
    for s in range(samples):
        numbers = range(s * local_samples, (s + 1) * local_samples)
        drawn = draw(model, source, batch, ids, numbers, chunk, keep=False)
        part = drawn.predicted(model, batch, ids.device)
        needed = keep or part.variance is not None
        parts.append(replace(part, log_density=None, mean=part.mean if needed else part.mean[:0]))
        whole = whole.and_(drawn)
    result = nested(whole.predicted(model, batch, ids.device), parts)
    return replace(result, samples=torch.stack([part.mean for part in parts])) if keep else result
