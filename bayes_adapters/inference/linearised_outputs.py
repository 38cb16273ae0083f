"""Predictives of linearised outputs, which are Gaussian: by draws of them, or by a formula that needs none."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.errors import choice
from bayes_adapters.heads.predictive import probit, probit_of_pairs
from bayes_adapters.inference._linearised_checks import require_formula
from bayes_adapters.inference.draws import weight_gaussian
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import keyed_uniform
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import GaussianOutputs

_ENTRIES = 2**24
"""Entries of the Jacobians that are held at one time: 64 MB of float32, and as much again for their products."""
_NOISE = "linearised.outputs"


class Linearisation(StrEnum):
    """How ``predict(…, linearised=…)`` averages over outputs ``f ~ N(f(x; m), J Σ Jᵀ)``."""

    WEIGHTS = "weights"
    """``True``: draws of the weights, so that one draw is one function of all inputs."""
    OUTPUTS = "outputs"
    """Draws of an example's own outputs, which cost nothing: hundreds of them. Other examples have other functions."""
    PROBIT = "probit"
    """No draws: :func:`~bayes_adapters.heads.predictive.probit_of_pairs`. All uncertainty of classes is aleatoric."""


def read_linearised(given: bool | Linearisation | str) -> Linearisation | None:
    """Return how outputs are linearised; None is not at all."""
    if isinstance(given, bool):
        return Linearisation.WEIGHTS if given else None
    return choice(Linearisation, "linearised", given)


class LinearisedOutputs:
    """Where :func:`bayes_adapters.predict` gets linearised outputs from that are Gaussian; see ``OwnGuide``.

    ``f ~ N(f(x; m), τ J Σ Jᵀ)``: exactly what ``f(x; m) + J (w − m)`` follows for w ~ N(m, τ Σ), example by example.
    A draw is ``f(x; m) + C^½ ε``, C^½ being the symmetric root of the M × M covariance of an example's M outputs. Its
    noise is a function of (seed, sample, example, entry); entries of tokens are numbered over real tokens only.

    Two cases need no draws. One number per example with Gaussian noise: ``N(f(x; m), J Σ Jᵀ + σ²)`` is exact. And
    ``Linearisation.PROBIT``.

    Args:
        model: the model.
        guide: its guide, Gaussian over weights.
        how: OUTPUTS or PROBIT.
        seed: of the draws.
        temperature: τ.
        at_once: examples whose Jacobians are held at one time; None takes as many as fit into 64 MB.

    Raises:
        ConfigError: the posterior is no Gaussian, or PROBIT of a likelihood that it is not for.
    """

    def __init__(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        how: Linearisation,
        seed: int,
        temperature: float = 1.0,
        at_once: int | None = None,
    ) -> None:
        self.model, self.seed, self.temperature = model, seed, temperature
        if how is Linearisation.PROBIT:
            require_formula(model.likelihood)
        mean, self.projected = weight_gaussian(model, guide)
        self.tangent = Tangent(model, mean)
        self.at_once = at_once
        likelihood = model.likelihood
        numbers = likelihood.expected_predicts and (likelihood.num_outputs == 1 or how is Linearisation.PROBIT)
        self.exact, self.draws = numbers, how is Linearisation.OUTPUTS and not numbers
        self._last: tuple[Batch, Tensor, Tensor] | None = None

    def is_random(self, batch: Batch) -> bool:
        return self.draws

    def outcome(self, batch: Batch, numbers: Tensor, ids: Tensor) -> tuple[Any, bool]:
        mean, matrix = self._gaussian(batch)
        if self.draws:
            return self.model.likelihood_of(mean + self._steps(batch, mean, matrix, numbers, ids), batch), False
        variance = matrix.diagonal(dim1=-2, dim2=-1)[None].to(mean)
        if self.exact:
            outputs = GaussianOutputs(mean[None], variance)
            return self.model.likelihood_of(outputs, batch), False
        if self.model.likelihood.num_outputs == 1:
            return self.model.likelihood_of(probit(mean[None], variance), batch), False
        return self.model.likelihood_of(probit_of_pairs(mean, matrix.to(mean))[None], batch), False

    def _gaussian(self, batch: Batch) -> tuple[Float[Tensor, "B *T K"], Float[Tensor, "B M M"]]:
        """An example's f(x; m), and the covariance of its M outputs, or, where outputs are drawn, its root."""
        if self._last is None or self._last[0] is not batch:
            mean, matrix = self._found(batch)
            self._last = (batch, mean, _root(matrix) if self.draws else matrix)
        return self._last[1], self._last[2]

    def _found(self, batch: Batch) -> tuple[Float[Tensor, "B *T K"], Float[Tensor, "B M M"]]:
        means: list[Tensor] = []
        found: list[Tensor] = []
        step = self.at_once or max(1, _ENTRIES // max(1, self.tangent.size * _each(self.model, batch)))
        for start in range(0, batch.size, step):
            part = batch[start : start + step]
            outputs, jacobian = self.tangent.at(part)
            mask = self.model.output_mask(part, outputs.shape[1]) if self.model.likelihood.per_token else None
            if mask is not None:
                jacobian = jacobian * mask[..., None, None]
            rows = self.projected(jacobian.flatten(1, -2))
            found.append(self.temperature * float64(torch.einsum("bip,bjp->bij", rows, rows)))
            means.append(outputs)
        return torch.cat(means), torch.cat(found)

    def _steps(
        self, batch: Batch, mean: Tensor, root: Tensor, numbers: Tensor, ids: Tensor
    ) -> Float[Tensor, "S B *T K"]:
        uniform = keyed_uniform(self.seed, _NOISE, numbers, ids, root.shape[-1], mean.device)
        mask = self.model.output_mask(batch, mean.shape[1]) if self.model.likelihood.per_token else None
        if mask is not None:
            place = (mask.cumsum(-1) - 1).clamp_min(0)
            uniform = uniform.reshape(len(numbers), *mean.shape)
            uniform = uniform[:, torch.arange(len(ids), device=mean.device)[:, None], place].flatten(2)
        noise = float64(torch.special.ndtri(float64(uniform)))
        return torch.einsum("bij,sbj->sbi", root, noise).reshape(len(numbers), *mean.shape).to(mean)


def draws_at_once(model: AdapterModel, batch: Batch, budget: int) -> int:
    """How many draws of a batch's outputs make ``budget`` numbers: no draw runs the backbone."""
    return max(1, budget // (batch.size * _each(model, batch)))


def _each(model: AdapterModel, batch: Batch) -> int:
    """M, the outputs of one example."""
    tokens = 1
    if model.likelihood.per_token:
        mask = batch.token_mask
        tokens = max(v.shape[1] for v in batch.inputs.values() if v.dim() > 1) if mask is None else mask.shape[1]
    return model.likelihood.num_outputs * tokens


def _root(covariance: Float[Tensor, "B M M"]) -> Float[Tensor, "B M M"]:
    """The symmetric root: unlike a Cholesky factor it is there where outputs are fewer than they seem."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0.0).sqrt()[..., None, :]) @ vectors.mT
