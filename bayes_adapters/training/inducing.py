"""Where the inducing points of a Gaussian-process head start: among the features of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import whole_number
from bayes_adapters.inference._checks import require_batch
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_one_device, require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import OwnSites, PosteriorMean, UnreadOutcome
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.training._inducing_checks import require_features, require_process

_PAIRS = 1000
"""Examples whose mutual distances tell the length scale."""


@exclusive()
def initialise(
    model: AdapterModel, guide: AdapterGuide, data: Batch | Iterable[Batch], *, iterations: int = 20, seed: int = 0
) -> None:
    """Set inducing points, length scales and q(u) of a model's Gaussian-process head from the features of ``data``.

    The M inducing points become the centres of k-means, started by k-means++ (Arthur and Vassilvitskii 2007); every
    length scale the median distance between two different features; q(u) its prior again, for what it knew was said of
    other points. Features are those at the posterior mean of the adapters. Call it before training, and again after
    some epochs if the adapters have moved the features. What is frozen is set, too, and stays frozen.

    Args:
        model: a model whose head is a :class:`~bayes_adapters.heads.gaussian_process.GaussianProcessHead`.
        guide: its guide.
        data: the training set or a part of it; one batch, or batches. Targets are not looked at.
        iterations: steps of k-means.
        seed: of k-means, whose numbers are drawn on the CPU.

    Raises:
        ConfigError: the head is another one, there are more inducing points than different features, or guide and model
            do not belong together.
        DataError: ``data`` holds no batch.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.heads.gaussian_process import GaussianProcessHead
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Bernoulli(), rank=2, head=GaussianProcessHead(3), num_data=9)
    >>> initialise(model, Delta(model), Batch({"input_ids": torch.randint(20, (9, 5))}))
    >>> model.head.kernel.base_kernel.lengthscale.shape
    torch.Size([1, 1, 1])
    """
    require_pair(model, guide)
    require_one_device(model, guide)
    head, posterior = require_process(model.head, guide.head_posterior)
    whole_number("iterations", iterations)
    features = _features(model, guide, data, head.embed)
    require_features(head.num_inducing, features)
    centres = _k_means(features, head.num_inducing, iterations, seed)
    distances = torch.pdist(features[:: -(-len(features) // _PAIRS)])
    apart = distances[distances > 0]
    with torch.no_grad():
        head.inducing_points.copy_(centres)
        if len(apart):
            head.kernel.base_kernel.lengthscale = apart.median().to(head.inducing_points)
        posterior.u.variational_mean.zero_()
        posterior.u.chol_variational_covar.copy_(torch.eye(head.num_inducing))


def _features(
    model: AdapterModel, guide: AdapterGuide, data: Batch | Iterable[Batch], embed: Callable[[Tensor], Tensor]
) -> Float[Tensor, "N d"]:
    """Where the head puts every example, on the CPU, float64."""
    seen: list[Tensor] = []
    device = next(model.parameters()).device
    handle = model.head.register_forward_pre_hook(lambda _, args: seen.append(embed(args[0]).detach().cpu().double()))
    with ExitStack() as stack:
        stack.callback(handle.remove)
        for context in (torch.no_grad(), evaluating(model, guide), UnreadOutcome(), PosteriorMean()):
            stack.enter_context(context)
        for batch in [data] if isinstance(data, Batch) else data:
            require_batch(batch)
            batch = batch.to(device).without_targets()
            with OwnSites(None, batch.ids, batch.ids, mean_only=True):
                guide(batch)
            guide.trace = type(guide.trace)()
    return torch.cat(seen) if seen else torch.empty(0, 1, dtype=torch.float64)


def _k_means(points: Float[Tensor, "N d"], count: int, iterations: int, seed: int) -> Float[Tensor, "M d"]:
    """Centres of ``count`` clusters: k-means++ to start with, then Lloyd's steps; an empty cluster's centre stays."""
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(len(points), (1,), generator=generator))
    chosen, nearest = [first], (points - points[first]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    centres = points[chosen]
    for _ in range(iterations):
        owner = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        sizes = torch.bincount(owner, minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)
    return centres
