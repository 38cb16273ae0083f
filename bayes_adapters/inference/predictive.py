"""Posterior-predictive sampling: probabilities and the split of uncertainty, by draws that can be repeated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import BayesAdaptersError, DataError, FoldError, integer, whole_number
from bayes_adapters.inference._checks import non_finite, require_finite
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.guide import AdapterGuide, require_one_device, require_pair
from bayes_adapters.inference.handlers import KeyedDraws, PosteriorMean, UnreadOutcome
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Prediction


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within the context the modules are in eval mode; after it each submodule has the mode it had before."""
    before = [(m, m.training) for module in modules for m in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


def predict(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Batch | Iterable[Batch],
    *,
    num_samples: int = 16,
    chunk_size: int | None = None,
    mean_only: bool = False,
    return_samples: bool = False,
    seed: int | None = 0,
) -> Prediction:
    """Average the likelihood's predictive over draws of the cores from the guide.

    Formula: ``p̄(y | x) = (1/S) Σ_s p(y | x, E_s)``, E_s ~ q; total = H[p̄], aleatoric = (1/S) Σ_s H[p(· | E_s)],
    epistemic = total − aleatoric, in nats. Draws are folded into the batch, ``chunk_size`` of them at a time, and only
    running sums are kept.

    Args:
        model: the model; its modes, parameters and adapters are left as they are.
        guide: the guide made for it.
        data: one batch, or batches of one data set in order. Batches without ``index`` are numbered consecutively.
        num_samples: S.
        chunk_size: draws per backbone pass; None means all S, or 1 where draws cannot share a pass: DeBERTa runs
            adapted layers on relative positions, which all draws have in common. Memory grows with chunk_size × B.
        mean_only: replace the draws by one pass at the posterior mean of the cores (S = 1, epistemic 0).
        return_samples: also return each draw's mean, shape (S, B, …).
        seed: noise is a function of (seed, site, sample, example index, token), so the result depends on neither batch
            nor chunk size. None draws with torch's generator.

    Returns:
        A :class:`Prediction` over all examples, on the model's device.

    Raises:
        DataError: ``data`` holds no batch or something else, only some batches have targets, or targets lie outside
            the likelihood's support.
        NonFiniteError: an example's outputs, or what the likelihood makes of them, are NaN or infinite.
        ConfigError: ``num_samples`` or ``chunk_size`` below 1, a seed that is no integer, or the guide belongs to
            another model or is on another device.
        FoldError: ``chunk_size`` above 1 where draws cannot share a pass.
    """
    require_pair(model, guide)
    require_one_device(model, guide)
    whole_number("num_samples", num_samples)
    if chunk_size is not None:
        whole_number("chunk_size", chunk_size)
    seed = None if seed is None else integer("seed", seed)
    if isinstance(data, Mapping):
        raise DataError("predict() takes a Batch or an iterable of them; wrap what a tokenizer returns: Batch(tokens).")
    samples = 1 if mean_only else num_samples
    device = next(model.parameters()).device
    parts: list[Prediction] = []
    offset, chunk = 0, chunk_size or samples
    with exclusive(), torch.no_grad(), evaluating(model, guide):
        for batch in [data] if isinstance(data, Batch) else data:
            if not isinstance(batch, Batch):
                raise DataError(f"predict() takes a Batch or an iterable of them; it found a {type(batch).__name__}.")
            batch = batch.to(device)
            if batch.targets is not None:
                model.likelihood.check(batch.targets)
            ids = batch.ids + offset if batch.index is None else batch.ids
            offset += batch.size
            try:
                part = _predict_batch(model, guide, batch, ids, samples, chunk, mean_only, return_samples, seed)
            except FoldError:
                if chunk_size is not None:
                    raise
                chunk = 1
                part = _predict_batch(model, guide, batch, ids, samples, chunk, mean_only, return_samples, seed)
            parts.append(part)
    if not parts:
        raise DataError("There is nothing to predict: the data holds no batch. Was a generator already exhausted?")
    return Prediction.concatenate(parts)


def _predict_batch(
    model: AdapterModel,
    guide: AdapterGuide,
    batch: Batch,
    ids: Tensor,
    samples: int,
    chunk: int,
    mean_only: bool,
    keep: bool,
    seed: int | None,
) -> Prediction:
    sums: dict[str, Tensor] = {}
    kept: list[Tensor] = []
    densities: list[Tensor] = []
    for start in range(0, samples, chunk):
        numbers = torch.arange(start, min(start + chunk, samples), device=ids.device)
        with ExitStack() as stack:
            stack.enter_context(UnreadOutcome())
            if mean_only:
                stack.enter_context(PosteriorMean())
            elif seed is not None:
                stack.enter_context(KeyedDraws(seed, numbers, ids))
            stack.enter_context(pyro.plate("samples", len(numbers), dim=-2))
            with _named_non_finite(model, guide):
                guide(batch.without_targets())
        fn: Any = guide.trace.nodes["obs"]["fn"]
        for name, value in model.likelihood.summarise(fn).items():
            require_finite(model, f"The likelihood's {name!r} is", value, batch.size)
            sums[name] = sums[name] + value if name in sums else value
        if keep:
            kept.append(fn.mean if type(fn).__name__ != "Categorical" else fn.probs)
        if batch.targets is not None:
            densities.append(fn.log_prob(batch.targets))
    guide.trace = type(guide.trace)()
    result = model.likelihood.predict(sums, samples)
    extra: dict[str, Tensor] = {}
    if keep:
        extra["samples"] = torch.cat(kept)
    if densities:
        extra["log_density"] = torch.logsumexp(torch.cat(densities), 0) - math.log(samples)
    return Prediction(**{**vars(result), **extra})


@contextmanager
def _named_non_finite(model: nn.Module, guide: nn.Module) -> Iterator[None]:
    """Turn torch's refusal of a distribution with NaN parameters into an error that names the tensor at fault."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, BayesAdaptersError) or "invalid values" not in str(error):
            raise
        where = str(error).partition(", but found invalid values")[0]
        raise non_finite(f"A distribution could not be made: {where}", model, guide) from error
