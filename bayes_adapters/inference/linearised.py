"""Outputs as a linear function of the weights: the tangent of a model at one value of all of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference._draw_checks import require_few_outputs, require_global
from bayes_adapters.inference.draws import weight_draws, weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import SubstitutedDraws, UnreadOutcome
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.watching import Watching


class Tangent:
    """``f(x; w) ≈ f(x; m) + J(x) (w − m)`` for the outputs f of a model, before its likelihood.

    w are the entries of all its weights, in the order of ``model.latent_sites``. The model is used in the mode that it
    is in: call ``model.eval()`` first.

    Args:
        model: all of its random parts are weights: one draw for the whole data set.
        values: site → m, shape ``site.shape``.

    Raises:
        ConfigError: a site has a draw for each example or token.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Categorical
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Categorical(3), num_data=100, rank=2).eval()
    >>> tangent = Tangent(model, {"A.global": torch.randn(2, 2, 8)})
    >>> outputs, jacobian = tangent.at(Batch({"input_ids": torch.tensor([[3, 5, 7]])}))
    >>> outputs.shape, jacobian.shape
    (torch.Size([1, 3]), torch.Size([1, 3, 32]))
    """

    def __init__(self, model: AdapterModel, values: Mapping[str, Tensor]) -> None:
        require_global(model.latent_sites)
        require_few_outputs(model.likelihood)
        self.model = model
        self.values = {site.name: values[site.name].detach().clone() for site in model.latent_sites}

    @property
    def size(self) -> int:
        """D, the number of entries of all weights."""
        return sum(prod(value.shape) for value in self.values.values())

    def flat(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*S D"]:
        """Return values of all sites, each (*S, *site.shape), side by side."""
        parts = [values[name].flatten(values[name].dim() - own.dim()) for name, own in self.values.items()]
        return torch.cat(parts, -1)

    @torch.enable_grad()
    def outputs(self, batch: Batch) -> tuple[Float[Tensor, "B *T K"], list[Tensor]]:
        """Return f(x; m) with a graph, and the leaves of that graph: m, site by site."""
        leaves = {name: value.detach().requires_grad_() for name, value in self.values.items()}
        with UnreadOutcome(), SubstitutedDraws(leaves):
            found = self.model(batch.without_targets())
        return found, list(leaves.values())

    @torch.enable_grad()
    def at(self, batch: Batch) -> tuple[Float[Tensor, "B *T K"], Float[Tensor, "B *T K D"]]:
        """Return f(x; m), and J, for every example.

        An example's part of the gradient of a matrix W, of which ``y_t = W x_t`` is all that the pass makes, is
        ``Σ_t (∂f/∂y_t) x_tᵀ`` over its tokens. So one forward pass serves the whole batch, and one backward pass an
        output of all of its examples. Where the model has another use of a weight, or where it cannot be told whose
        tokens a layer sees, each example has a forward pass and one backward pass per output.
        """
        with Watching() as watching:
            found, leaves = self.outputs(batch)
        each = [self._of_examples(found, leaves, watching, entry) for entry in range(found[0].numel())]
        if any(rows is None for rows in each):
            return self._one_by_one(batch)
        jacobian = torch.stack([rows for rows in each if rows is not None], 1)
        return found.detach(), jacobian.reshape(*found.shape, -1)

    def _of_examples(
        self, found: Tensor, leaves: list[Tensor], watching: Watching, entry: int
    ) -> Float[Tensor, "B D"] | None:
        """The gradient of one entry of the outputs of every example; None where the products do not tell it."""
        size = len(found)
        products = [(key, product) for key, products in watching.products.items() for product in products]
        weights = torch.zeros_like(found).reshape(size, -1)
        weights[:, entry] = 1.0
        ends = [*leaves, *(product.y for _, product in products)]
        gradients = torch.autograd.grad(found, ends, weights.reshape(found.shape), retain_graph=True, allow_unused=True)
        rows = {name: value.new_zeros(size, *value.shape) for name, value in self.values.items()}
        for ((name, layer), product), slope in zip(products, gradients[len(leaves) :], strict=True):
            if slope is None:
                continue
            if product.arrange is None or rows[name].dim() not in (3, 4):
                return None
            g, x = product.arrange(slope), product.arrange(product.x.detach()).to(slope)
            part = torch.einsum("btm,btk->bmk", g, x) if rows[name].dim() == 4 else (g * x).sum(1)
            # An example whose segments run apart has a row for each, one after another.
            rows[name][:, layer] += part.unflatten(0, (size, -1)).sum(1)
        for (name, parts), whole in zip(rows.items(), gradients, strict=False):
            total = torch.zeros_like(self.values[name]) if whole is None else whole
            if not torch.allclose(parts.sum(0), total, rtol=1e-3, atol=1e-4 * float(total.abs().max())):
                return None
        return self.flat(rows)

    def _one_by_one(self, batch: Batch) -> tuple[Float[Tensor, "B *T K"], Float[Tensor, "B *T K D"]]:
        outputs, rows = [], []
        for place in range(batch.size):
            found, leaves = self.outputs(batch[place : place + 1])
            entries = found.flatten()
            rows.append(torch.stack([self.pulled(entries, leaves, one) for one in torch.eye(len(entries))]))
            outputs.append(found.detach())
        whole = torch.cat(outputs)
        return whole, torch.stack(rows).reshape(*whole.shape, -1)

    def pulled(self, entries: Tensor, leaves: list[Tensor], weights: Tensor) -> Float[Tensor, " D"]:
        """Return ``Jᵀ v`` for outputs with a graph, which is kept, and v = ``weights`` of their shape."""
        weights = weights.to(entries)
        found = torch.autograd.grad(entries, leaves, weights, retain_graph=True, allow_unused=True)
        return self.joined(found)

    def joined(self, gradients: Sequence[Tensor | None]) -> Float[Tensor, " D"]:
        """Return the gradients of all sites in a row; None is 0."""
        whole = [torch.zeros_like(m) if g is None else g for g, m in zip(gradients, self.values.values(), strict=True)]
        return torch.cat([part.flatten() for part in whole])


class Linearised:
    """Where :func:`bayes_adapters.predict` gets linearised outputs from; see ``OwnGuide`` for the members.

    ``f_s(x) = f(x; m) + J(x) (w_s − m)``, w_s being the draws that the guide has under the same seed: one draw is one
    function of all inputs, and over draws f is Gaussian with covariance ``J Σ Jᵀ`` where w is.

    Args:
        model: the model.
        guide: its guide.
        mean_only: take w = m.
        seed: of the draws.
        temperature: τ; draws are ``m + √τ (w_s − m)``, so the covariance of f is ``τ J Σ Jᵀ``.
    """

    def __init__(
        self, model: AdapterModel, guide: AdapterGuide, mean_only: bool, seed: int, temperature: float = 1.0
    ) -> None:
        self.model, self.guide, self.mean_only, self.seed = model, guide, mean_only, seed
        self.root = temperature**0.5
        mean = weight_mean(model, guide)
        self.tangent = Tangent(model, mean)
        self.mean = self.tangent.flat(mean)
        self._last: tuple[Batch, Tensor, Tensor] | None = None

    def is_random(self, batch: Batch) -> bool:
        return not self.mean_only

    def outcome(self, batch: Batch, numbers: Tensor, ids: Tensor) -> tuple[Any, bool]:
        if self._last is None or self._last[0] is not batch:
            self._last = (batch, *self.tangent.at(batch))
        _, outputs, jacobian = self._last
        if self.mean_only:
            return self.model.likelihood_of(outputs[None], batch), False
        draws = weight_draws(self.model, self.guide, numbers, seed=self.seed, temperature=1.0)
        steps = self.root * float64(self.tangent.flat(draws) - self.mean)
        moved = (float64(jacobian).flatten(0, -2) @ steps.mT).mT.reshape(len(numbers), *outputs.shape)
        return self.model.likelihood_of(outputs + moved.to(outputs), batch), False


def require_weights_guide(guide: object) -> AdapterGuide:
    """Return ``guide``; raise :class:`ConfigError` unless it is one of this library, which tells its mean."""
    if not isinstance(guide, AdapterGuide):
        raise ConfigError(
            "linearised=True needs a guide of this library over weights, whose mean is the point of the tangent; got a "
            f"{type(guide).__name__}. Leave linearised out, or take a guide such as Laplace, MeanField or LowRank."
        )
    return guide
