"""Whether a context belongs to the input it came with: a density on pairs, beside the densities of each alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bayes_adapters.backbones.hidden_states import last_hidden_state
from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.heads import Pooling
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.reliability._pair_checks import (
    check_pairs,
    require_fitted,
    require_modality,
    require_rank,
    require_width,
)

_HIGHEST = 0.95
"""A correlation above it is not believed: 20 held-out pairs can show .99 by chance."""
_RESOLUTION = 1e-5
"""Relative size below which a variation of float32 features is rounding."""


class PairDensity(nn.Module):
    """Agreement of two feature vectors: their pointwise mutual information under a joint Gaussian.

    Formula: ``log p(x, a) / (p(x) p(a)) = Σ_j −½ log(1 − ρ_j²) − (ρ_j² (u_j² + v_j²) − 2 ρ_j u_j v_j) / 2(1 − ρ_j²)``
    in nats, with the canonical variates ``u = P (x − x̄)``, ``v = Q (a − ā)`` (Hotelling 1936): each of variance 1, and
    of all of them only u_j and v_j correlated, by ρ_j. It is high where a is what x lets one expect, and its mean over
    matched pairs is their mutual information, ``−½ Σ_j log(1 − ρ_j²)``; of a context that belongs to another input it
    is low, though both are ordinary ones, which no density of the context alone can see.
    ``γ = exp(−max(0, limit − agreement) / tail)``, ``limit`` the 5 % quantile of held-out pairs, ``tail`` its distance
    to their median.

    P and Q are estimated in the span of the first principal components of each side. In-sample correlations are far
    too high where features are many and pairs are few. So ρ_j, and the units of u and v, are those of held-out pairs,
    clipped to 0 … .95 and made not to rise with j.

    The guide does not read it: give its γ to :func:`bayes_adapters.reliability.blend`, or its agreement to
    :func:`bayes_adapters.analysis.selection.selective`. It is saved with an adapter by ``save(…, pair_densities=)``.
    Features of the frozen encoders come from :func:`frozen_pairs`.

    The constructor makes an unfitted density, whose tensors are about to be loaded; :meth:`fit` makes one to use.

    Args:
        input_dim: width of x.
        context_dim: width of a.
        components: how many canonical variates.
        pairs: M, the number of held-out pairs whose agreements :meth:`p_value` compares with.

    >>> _ = torch.manual_seed(0)
    >>> shared = torch.randn(400, 5)
    >>> x, a = (shared + 0.5 * torch.randn(400, 5) for _ in range(2))
    >>> density = PairDensity.fit(x[:300], a[:300], x[300:], a[300:], components=4)
    >>> [round(float(density(x, other).median()), 2) for other in (a, a.roll(1, 0))]
    [1.0, 0.23]
    """

    correlation: Float[Tensor, " k"]
    limit: Float[Tensor, ""]
    tail: Float[Tensor, ""]
    held_out: Float[Tensor, " M"]

    def __init__(self, input_dim: int, context_dim: int, components: int, pairs: int = 0) -> None:
        super().__init__()
        self.input_dim, self.context_dim, self.components = input_dim, context_dim, components
        for name, width in (("input", input_dim), ("context", context_dim)):
            self.register_buffer(f"{name}_centre", torch.zeros(width))
            self.register_buffer(f"{name}_map", torch.zeros(width, components))
            self.register_buffer(f"{name}_offset", torch.zeros(components))
        self.register_buffer("correlation", torch.zeros(components))
        self.register_buffer("limit", torch.tensor(-math.inf))
        self.register_buffer("tail", torch.tensor(1.0))
        self.register_buffer("held_out", torch.zeros(pairs))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        inputs: Float[Tensor, "N d"],
        contexts: Float[Tensor, "N c"],
        held_out_inputs: Float[Tensor, "M d"],
        held_out_contexts: Float[Tensor, "M c"],
        *,
        components: int = 40,
    ) -> PairDensity:
        """Estimate the variates on training pairs, and their correlations and the limit on held-out ones.

        Args:
            inputs: x of N matched training pairs.
            contexts: a of the same.
            held_out_inputs: x of M ≥ 20 matched pairs that are not among them.
            held_out_contexts: a of the same.
            components: principal components of each side, and variates; below N, and at most the smaller width.

        Raises:
            DataError: other shapes, fewer pairs, or features that are not finite.
            ConfigError: ``components`` is out of range, or more than the directions in which one side varies.
        """
        check_pairs(inputs, contexts, held_out_inputs, held_out_contexts, components)
        density = cls(inputs.shape[1], contexts.shape[1], components, len(held_out_inputs)).to(inputs.device)
        centres, maps, scores = list[Tensor](), list[Tensor](), list[Tensor]()
        for features in (inputs, contexts):
            wide = float64(features)
            unit = wide.std(0)
            unit = torch.where(unit > _RESOLUTION * wide.abs().amax(0), unit, torch.inf)  # constant: it says nothing
            _, size, rows = torch.linalg.svd((wide - wide.mean(0)) / unit, full_matrices=False)
            require_rank(size, _RESOLUTION, components, "inputs" if not maps else "contexts")
            whiten = rows[:components].mT / (size[:components] / math.sqrt(len(wide) - 1))
            centres.append(wide.mean(0))
            maps.append(whiten / unit[:, None])
            scores.append((wide - centres[-1]) @ maps[-1])
        left, _, right = torch.linalg.svd(scores[0].mT @ scores[1] / (len(inputs) - 1))
        held = []
        turned = (("input", left, held_out_inputs), ("context", right.mT, held_out_contexts))
        for (name, turn, features), centre, mapping in zip(turned, centres, maps, strict=True):
            own = mapping @ turn
            variates = (float64(features) - centre) @ own
            unit, mean = variates.std(0).clamp_min(1e-12), variates.mean(0)
            held.append((variates - mean) / unit)
            for part, value in (("centre", centre), ("map", own / unit), ("offset", mean / unit)):
                density.get_buffer(f"{name}_{part}").copy_(value)
        correlation = (held[0] * held[1]).sum(0) / (len(held[0]) - 1)
        density.correlation.copy_(correlation.clamp(0.0, _HIGHEST).cummin(0).values)
        agreement = density.agreement(held_out_inputs, held_out_contexts)
        limit, median = agreement.quantile(torch.tensor([0.05, 0.5], device=agreement.device)).unbind()
        density.limit.copy_(limit)
        density.tail.copy_((median - limit).clamp_min(1e-6))
        density.held_out.copy_(agreement.sort().values)
        return density

    def agreement(self, inputs: Float[Tensor, "B d"], contexts: Float[Tensor, "B c"]) -> Float[Tensor, " B"]:
        """Return the pointwise mutual information of each pair, nats.

        Raises:
            DataError: features of other widths, or other numbers of them.
        """
        require_width(inputs, contexts, self.input_dim, self.context_dim)
        u, v = self._variates("input", inputs), self._variates("context", contexts)
        rho = self.correlation
        free = 1 - rho.square()
        return (-0.5 * free.log() - (rho.square() * (u.square() + v.square()) - 2 * rho * u * v) / (2 * free)).sum(-1)

    def _variates(self, name: str, features: Float[Tensor, "B d"]) -> Float[Tensor, "B k"]:
        centre, mapping, offset = (self.get_buffer(f"{name}_{part}") for part in ("centre", "map", "offset"))
        return (features.to(mapping) - centre) @ mapping - offset

    def forward(self, inputs: Float[Tensor, "B d"], contexts: Float[Tensor, "B c"]) -> Float[Tensor, " B"]:
        """Return γ, in [0, 1]; 0 where a feature is NaN or infinite.

        Raises:
            ConfigError: the density is not fitted.
            DataError: see :meth:`agreement`.
        """
        require_fitted(bool(self.limit.isfinite()))
        agreement = self.agreement(inputs, contexts).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        return torch.exp(-(self.limit - agreement).clamp_min(0.0) / self.tail)

    def p_value(self, inputs: Float[Tensor, "B d"], contexts: Float[Tensor, "B c"]) -> Float[Tensor, " B"]:
        """Return the share of matched pairs that agree no better.

        Formula: ``(1 + #{held-out agreements ≤ this one}) / (M + 1)``. A pair of the same kind as the held-out ones has
        a share of at most α with probability at most α, as in conformal prediction, but for this: correlations and
        units were estimated on the held-out pairs too, which therefore agree a little better than new ones (on the
        prompts 9 % of new matched pairs fell below the 5 % quantile of 54 held-out ones). A context of another input
        tends to a small share.

        Raises:
            ConfigError: the density is not fitted.
            DataError: see :meth:`agreement`.
        """
        require_fitted(bool(self.limit.isfinite()))
        agreement = self.agreement(inputs, contexts).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        no_better = torch.searchsorted(self.held_out, agreement, right=True)
        return (1 + no_better) / (len(self.held_out) + 1)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        sizes = ("input_dim", "context_dim", "components")
        return {name: getattr(self, name) for name in sizes} | {"pairs": len(self.held_out)}


@torch.no_grad()
def frozen_pairs(
    model: AdapterModel, data: Batch | Sequence[Batch], modality: str = "audio"
) -> tuple[Float[Tensor, "N d"], Float[Tensor, "N c"], Bool[Tensor, " N"]]:
    """Return the features of inputs and contexts as the frozen encoders give them.

    Args:
        model: its backbone, without adapters, is what reads the inputs.
        data: one batch, or several; all have the modality.
        modality: a key of ``Batch.context``.

    Returns:
        The mean over real tokens of the last hidden states, shape (N, d); the mean over real frames, (N, c), zero where
        there are none; and whether there are any, (N,).

    Raises:
        DataError: no batch, or one without the modality.
    """
    batches = [data] if isinstance(data, Batch) else list(data)
    require_modality(batches, modality)
    device = next(model.parameters()).device
    inputs, contexts, present = [], [], []
    with evaluating(model), model.adapters_disabled() as plain:
        for batch in batches:
            batch = batch.to(device)
            hidden = last_hidden_state(plain(**batch.inputs), plain)
            inputs.append(Pooling.MEAN(hidden, batch.token_mask).float())
            contexts.append(batch.context[modality].mean())
            present.append(batch.context[modality].present)
    return torch.cat(inputs), torch.cat(contexts), torch.cat(present)
