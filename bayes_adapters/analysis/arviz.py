"""Posterior-predictive draws as ArviZ's ``InferenceData``, for its checks, diagnostics and plots.

Needs the extra ``arviz``; it is imported on first use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyro
import torch

from bayes_adapters.analysis._checks import require_all_or_none, require_one_target
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import DataError, missing_package, whole_number
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.inference.tempering import Tempering, temperature_of

if TYPE_CHECKING:
    from arviz import InferenceData


@exclusive()  # it sets the modes of the modules and runs Pyro's handlers, as predict does
def to_arviz(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Batch | Iterable[Batch],
    *,
    num_samples: int = 100,
    chunk_size: int = 16,
    seed: int = 0,
) -> InferenceData:
    """Draw from the posterior predictive and keep each draw, its log-likelihood and the observed targets.

    Formula, for draws ``E_s ~ q`` (the guide's; they are independent, so there is one chain of S draws)::

        posterior_predictive  obs[0, s, n] ~ p(y | x_n, E_s)
        log_likelihood        obs[0, s, n] = log p(y_n | x_n, E_s)      (nats)
        observed_data         obs[n]       = y_n

    Local cores are part of ``E_s``: their draw belongs to its example. ``arviz.loo`` and ``waic`` read the group
    ``log_likelihood`` as draws of the exact posterior; a guide is an approximation, and so are they.

    Args:
        model: the model; its modes and parameters are left as they are.
        guide: the guide made for it; its ``posterior_temperature`` counts.
        data: one batch, or batches of one data set in order; targets of shape (B,). Without targets there is the group
            ``posterior_predictive`` alone.
        num_samples: S.
        chunk_size: draws per backbone pass; 1 where draws cannot share a pass, as on DeBERTa.
        seed: of the draws; torch's generator is left as it was.

    Returns:
        ``InferenceData`` with one variable ``obs``, dimensions (chain = 1, draw = S, example = N).

    Raises:
        DataError: no batch, only some batches have targets, or targets per token.
        ConfigError: ``num_samples`` or ``chunk_size`` below 1, or the guide belongs to another model or is on another
            device.
        MissingResourceError: arviz is not installed.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Gaussian
    >>> from bayes_adapters.systems import build
    >>> from bayes_adapters import Batch
    >>> model, guide = build("blob", BertModel(tiny), Gaussian(), num_data=3, rank=2)
    >>> data = Batch({"input_ids": torch.randint(20, (3, 6))}, targets=torch.randn(3))
    >>> draws = to_arviz(model, guide, data, num_samples=8)
    >>> draws.posterior_predictive["obs"].shape
    (1, 8, 3)
    """
    arviz = _arviz()
    require_pair(model, guide)
    require_one_device(model, guide)
    whole_number("num_samples", num_samples)
    whole_number("chunk_size", chunk_size)
    require_one_target(model.likelihood, model.likelihood.per_token, model.likelihood.compares)
    parts: dict[str, list[torch.Tensor]] = {"drawn": [], "density": [], "targets": []}
    batches = 0
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), evaluating(model, guide):
        torch.manual_seed(seed)
        for batch in [data] if isinstance(data, Batch) else data:
            batches += 1
            batch = batch.to(device)
            targets = batch.targets
            if isinstance(targets, Mapping):
                raise DataError("to_arviz() takes one target per variable; take the tasks one by one.")
            drawn, density = [], []
            for outcome in _outcomes(guide, batch, num_samples, chunk_size):
                drawn.append(outcome.sample())
                if targets is not None:
                    density.append(outcome.log_prob(targets))
            parts["drawn"].append(torch.cat(drawn))
            if targets is not None:
                model.likelihood.check(targets)
                parts["targets"].append(targets)
                parts["density"].append(torch.cat(density))
    require_all_or_none(len(parts["targets"]), batches)
    groups: dict[str, Any] = {"posterior_predictive": {"obs": torch.cat(parts["drawn"], 1)[None].cpu().numpy()}}
    if parts["targets"]:
        groups["log_likelihood"] = {"obs": torch.cat(parts["density"], 1)[None].cpu().numpy()}
        groups["observed_data"] = {"obs": torch.cat(parts["targets"]).cpu().numpy()}
    found: InferenceData = arviz.from_dict(**groups, dims={"obs": ["example"]})
    return found


def _outcomes(guide: AdapterGuide, batch: Batch, samples: int, chunk: int) -> Iterator[Any]:
    """Yield p(y | x, E_s), batch shape (draws of a chunk, B), until there are ``samples`` draws."""
    tau = temperature_of(guide)
    for start in range(0, samples, chunk):
        with ExitStack() as stack:
            if tau != 1.0:
                stack.enter_context(Tempering(tau))
            stack.enter_context(pyro.plate("samples", min(chunk, samples - start), dim=-2))
            guide(batch.without_targets())
        yield guide.trace.nodes["obs"]["fn"]


def _arviz() -> Any:
    try:
        import arviz
    except ImportError as error:
        raise missing_package("to_arviz()", "arviz", "arviz") from error
    return arviz
