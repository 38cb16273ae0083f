"""Does a device compute what the CPU computes, and does bfloat16 stay where it belongs?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, Bernoulli, Granularity, predict
from bayes_adapters.distributions import base_distribution
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField, PooledContext
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.models import StochasticCore
from bayes_adapters.sites import SITE
from examples.benchmarks.handwritten import disagreement
from examples.benchmarks.workload import Backbones, Sizes, fill_up_projections, make_batch

TOLERANCE = 1e-4
"""float32 on two devices: largest ``max |a − b| / max |b|`` of a loss, a gradient or a prediction."""
BF16_TOLERANCE = 0.05
"""bfloat16 autocast against float32 on one device: largest relative difference of the loss, nll or KL."""
SIZES = Sizes(6, 10, 7, 12)


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Args:
        name: what.
        passed: whether it holds.
        detail: the numbers behind it.
    """

    name: str
    passed: bool
    detail: str


GUIDES: dict[str, tuple[type[AdapterGuide], dict[str, Any]]] = {
    "contextual": (Contextual, {}),
    "pooled_context": (PooledContext, {"context_dim": SIZES.width, "dim": 8}),
    "cross_attention": (CrossAttention, {"context_dim": SIZES.width, "dim": 8, "heads": 2}),
    "mean_field": (MeanField, {}),
    "delta": (Delta, {}),
}


def combinations() -> list[tuple[str, Granularity]]:
    """Every guide with every granularity it serves."""
    return [(name, g) for name, (guide, _) in GUIDES.items() for g in Granularity if g in guide.serves]


def make(name: str, granularity: Granularity, device: str) -> tuple[AdapterModel, AdapterGuide]:
    """Build a small random BERT with this guide; the same weights on every device."""
    torch.manual_seed(0)
    model = StochasticCore(Backbones("tiny")(), Bernoulli(), granularity=granularity, rank=4, num_data=100)
    fill_up_projections(model, 0.5)
    kind, options = GUIDES[name]
    guide = kind(model, **options)
    return model.to(device), guide.to(device)


@contextmanager
def same_noise(batch: Batch) -> Iterator[None]:
    """Within, cores are drawn from noise that is a function of their coordinates, alike on every device."""
    samples = torch.zeros(1, dtype=torch.long, device=batch.ids.device)
    with KeyedDraws(0, samples, batch.ids), pyro.plate("samples", 1, dim=-2):
        yield


def loss_and_gradients(
    model: AdapterModel, guide: AdapterGuide, batch: Batch
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The ELBO's loss, nll and KL under :func:`same_noise`, and every trainable tensor's gradient (zero if none)."""
    tensors = {f"model.{n}": p for n, p in model.trainable_parameters().items()}
    tensors |= {f"guide.{n}": p for n, p in guide.named_parameters()}
    with same_noise(batch):
        terms = ELBO(model, guide).terms(batch)
    found = torch.autograd.grad(terms.loss, list(tensors.values()), allow_unused=True)
    pairs = zip(tensors.items(), found, strict=True)
    parts = [terms.loss.detach(), terms.nll.detach(), terms.kl.detach()]
    return parts, {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def check_device(name: str, granularity: Granularity, device: str) -> Check:
    """Compare loss, gradients and prediction on ``device`` with the CPU's, in float32 with the same noise."""
    batch = make_batch(SIZES, 50)
    on_cpu, there = make(name, granularity, "cpu"), make(name, granularity, device)
    loss, gradients = loss_and_gradients(*on_cpu, batch)
    loss_there, gradients_there = loss_and_gradients(*there, batch.to(device))
    off_loss = disagreement(loss_there, loss)
    off = {k: disagreement([gradients_there[k]], [gradients[k]]) for k in gradients}
    worst = max(off, key=lambda k: off[k])
    ours, theirs = predict(*on_cpu, batch, num_samples=8), predict(*there, batch.to(device), num_samples=8)
    # Uncertainties are differences of entropies near 1 nat: an absolute difference is what counts.
    fields = [f.name for f in dataclasses.fields(ours) if isinstance(getattr(ours, f.name), Tensor)]
    off_prediction = max(float((getattr(theirs, f).cpu() - getattr(ours, f)).abs().max()) for f in fields)
    passed = max(off_loss, off[worst], off_prediction) <= TOLERANCE
    detail = f"ELBO {off_loss:.0e}, gradient {off[worst]:.0e} ({worst}), prediction {off_prediction:.0e}"
    return Check(f"{device} = cpu: {name}, {granularity.value}", passed, detail)


def check_bfloat16(name: str, granularity: Granularity, device: str) -> Check:
    """Compare bfloat16 autocast with float32; variational parameters, their gradients and densities stay float32."""
    batch = make_batch(SIZES, 50, device=device)
    model, guide = make(name, granularity, device)
    loss, _ = loss_and_gradients(model, guide, batch)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        low, gradients = loss_and_gradients(model, guide, batch)
        with same_noise(batch):
            guide(batch)
        wrong = _not_float32(guide)
    off = disagreement(low, loss)
    finite = math.isfinite(float(low[0])) and all(bool(g.isfinite().all()) for g in gradients.values())
    wrong += [n for n, p in guide.named_parameters() if p.dtype != torch.float32]
    wrong += [n for n, g in gradients.items() if g.dtype != torch.float32]
    detail = f"loss, nll, KL differ by at most {off:.0e} from float32; finite: {finite}; "
    detail += f"not float32: {', '.join(wrong) or 'nothing'}"
    return Check(f"bfloat16: {name}, {granularity.value}", finite and off <= BF16_TOLERANCE and not wrong, detail)


def _not_float32(guide: AdapterGuide) -> list[str]:
    """Parts of the last pass that are not float32: posterior parameters, log densities, the likelihood's."""
    wrong = []
    nodes: Any = guide.trace.nodes
    for name, site in nodes.items():
        if site["type"] != "sample" or (SITE not in site["infer"] and name != "obs"):
            continue
        base = base_distribution(site["fn"])
        parts = {k: v for k, v in vars(base).items() if isinstance(v, Tensor) and v.is_floating_point()}
        parts["log_prob"] = site["fn"].log_prob(site["value"])
        wrong += [f"{name}.{k} ({v.dtype})" for k, v in parts.items() if v.dtype != torch.float32]
    return wrong
