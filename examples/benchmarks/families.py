"""The families whose cost is measured: structures, guides, heads, optimisers and posteriors after training."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Categorical, adapted_layers, guides, heads, models
from bayes_adapters.samplers import ivon
from bayes_adapters.surgery.ensemble import ensemble
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from bayes_adapters.surgery.swag import Trajectory
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import fit
from examples.benchmarks.workload import Sizes

Pair = tuple[AdapterModel, AdapterGuide]
BASE = "`MeanField`"
"""What all are compared with: one mean and one variance for each entry of a core that all examples share."""
CLASSES, NUM_DATA = 3, 1000
_OPTIONS: dict[str, Any] = {"targets": ["query", "value"], "rank": 8, "alpha": 16.0}


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Args:
        group: a heading.
        build: (backbone, batch) → model and guide, ready for a step or a prediction.
        optimizer: (model, guide) → what takes a step; None is AdamW.
        once: made of a trained adapter by ``build``, and not trained itself.
        timed: whether that is all it takes; an ensemble takes trainings.
        predict: options of ``predict``.
    """

    group: str
    build: Callable[[nn.Module, Batch], Pair]
    optimizer: Callable[[Any, Any], torch.optim.Optimizer] | None = None
    once: bool = False
    timed: bool = True
    predict: Mapping[str, Any] | None = None


def _filled(model: AdapterModel) -> AdapterModel:
    """B is drawn where it is a parameter at zero: random parts matter then, as they do after training."""
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            up = layer.lora_B
            if isinstance(up, nn.Parameter) and not bool(up.any()):
                up.normal_(0.0, 0.05)
    return model


def _model(kind: Any, backbone: nn.Module, **options: Any) -> AdapterModel:
    return _filled(kind(backbone, Categorical(CLASSES), **{**_OPTIONS, **options}))


def _pair(kind: Any, guide: Callable[[Any], AdapterGuide], **options: Any) -> Callable[[nn.Module, Batch], Pair]:
    def build(backbone: nn.Module, batch: Batch) -> Pair:  # noqa: ARG001 -- others look at the batch
        model = _model(kind, backbone, **options)
        return model, guide(model)

    return build


def _core(guide: Callable[[Any], AdapterGuide]) -> Callable[[nn.Module, Batch], Pair]:
    return _pair(models.StochasticCore, guide, granularity="global", num_data=NUM_DATA)


def _token(guide: Callable[[Any], AdapterGuide]) -> Callable[[nn.Module, Batch], Pair]:
    return _pair(models.StochasticCore, guide)


def _head(make: Callable[[], Any]) -> Callable[[nn.Module, Batch], Pair]:
    return lambda backbone, batch: _pair(models.LoRA, guides.Delta, head=make(), num_data=NUM_DATA)(backbone, batch)


def _process(backbone: nn.Module, batch: Batch) -> Pair:
    from bayes_adapters.training.inducing import initialise

    model, guide = _head(lambda: heads.GaussianProcessHead(min(16, batch.size)))(backbone, batch)
    initialise(model, guide, batch)
    return model, guide


def _lora(backbone: nn.Module, batch: Batch) -> Pair:
    return _pair(models.LoRA, guides.Delta)(backbone, batch)


def _swag(backbone: nn.Module, batch: Batch) -> Pair:
    model, guide = _lora(backbone, batch)
    path = Trajectory(start=1, every=1, columns=10)
    optimizer = torch.optim.SGD([p for part in (model, guide) for p in part.parameters() if p.requires_grad], lr=1e-3)
    fit(model, guide, batch, epochs=12, optimizer=optimizer, on_step=path, progress=False)
    return path.posterior(model, guide, num_data=NUM_DATA)


def _ensemble(backbone: nn.Module, batch: Batch) -> Pair:
    return ensemble([_lora(copy.deepcopy(backbone), batch) for _ in range(5)])


def _after(make: Callable[[Any, Any, Batch], Any]) -> Callable[[nn.Module, Batch], Pair]:
    def build(backbone: nn.Module, batch: Batch) -> Pair:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the adapter is not trained to an optimum; what it costs is the same
            model, guide, *_ = make(*_lora(backbone, batch), batch)
        return model, guide

    return build


def families() -> dict[str, Family]:
    """Return name → family, :data:`BASE` first; those that need a package that is not installed are left out."""
    normal = {"prior": dist.Normal(0.0, 0.2), "num_data": NUM_DATA}
    weights = {"num_data": NUM_DATA}
    width = Sizes().width

    def ours(model: Any, guide: Any) -> Any:
        return ivon(model, guide)

    found = {
        BASE: Family("guide", _core(guides.MeanField)),
        "`Delta`: a point": Family("guide", _core(guides.Delta)),
        "`MatrixNormal`": Family("guide", _core(guides.MatrixNormal)),
        "`FullGaussian`, a layer": Family("guide", _core(guides.FullGaussian)),
        "`FullGaussian`, all layers": Family("guide", _core(lambda m: guides.FullGaussian(m, over="all"))),
        "`LowRank`, 4 directions": Family("guide", _core(guides.LowRank)),
        "`Mixture` of 3": Family("guide", _core(guides.Mixture)),
        "`Flow`": Family("guide", _core(guides.Flow)),
        "`MeanField` by IVON": Family("guide", _core(guides.MeanField), ours),
        "`Contextual`, a core per token (C-LoRA)": Family("guide", _token(guides.Contextual)),
        "`PooledContext` (CALIBER-G)": Family("guide", _token(lambda m: guides.PooledContext(m, context_dim=width))),
        "`CrossAttention` (CALIBER-X)": Family("guide", _token(lambda m: guides.CrossAttention(m, context_dim=width))),
        "`LoRA`, `Delta`": Family("structure", _lora),
        "`AdapterDropout`, `MCDropout`": Family("structure", _pair(models.AdapterDropout, guides.MCDropout)),
        "`DiagonalCore`, `MeanField` (ScalaBL)": Family(
            "structure", _pair(models.DiagonalCore, guides.MeanField, **weights)
        ),
        "`LoRAXS`, `MeanField`": Family("structure", _pair(models.LoRAXS, guides.MeanField, **weights)),
        "`PoLAR`, `MeanField`": Family("structure", _pair(models.PoLAR, guides.MeanField, **weights)),
        "`StochasticDown`, `MeanField` (BLoB)": Family(
            "structure", _pair(models.StochasticDown, guides.MeanField, flipout=True, **weights)
        ),
        "`StochasticFactors`, `MeanField`": Family(
            "structure", _pair(models.StochasticFactors, guides.MeanField, **normal)
        ),
        "`StochasticFactors`, `RankWise` (BayesLoRA)": Family(
            "structure",
            _pair(models.StochasticFactors, lambda m: guides.RankWise(m, init_log_variance=-8.0), **weights),
        ),
        "`GatedLoRA`, `RankGates`": Family("structure", _pair(models.GatedLoRA, guides.RankGates, **weights)),
        "`BayesianLinear`": Family("head", _head(heads.BayesianLinear)),
        "`VariationalLastLayer`": Family("head", _head(heads.VariationalLastLayer)),
        "`GenerativeLastLayer`": Family("head", _head(heads.GenerativeLastLayer)),
        "`GaussianProcessHead`, 16 points": Family("head", _process),
        "`laplace`, sampled": Family("after training", _after(laplace), once=True),
        "`laplace`, linearised": Family("after training", _after(laplace), once=True, predict={"linearised": True}),
        "`laplace`, outputs": Family("after training", _after(laplace), once=True, predict={"linearised": "outputs"}),
        "`last_layer_laplace`": Family("after training", _after(last_layer_laplace), once=True),
        "`bayesianise` (TFB)": Family(
            "after training", _after(lambda *parts: bayesianise(*parts, iterations=3)), once=True
        ),
        "SWAG, 10 columns": Family("after training", _swag, once=True),
        "`ensemble` of 5": Family("after training", _ensemble, once=True, timed=False),
    }
    if importlib.util.find_spec("gpytorch") is None:
        del found["`GaussianProcessHead`, 16 points"]
    return found
