"""Likelihoods: how outputs of the head become a distribution of the target, and how posterior draws are averaged.

Every likelihood has the same members, in this order: ``name``, ``num_outputs`` (what the head must produce),
``per_token``, ``apart``, ``separable``, ``bounded``, ``smooth``, ``compares``, ``two_sides``, ``__init__``,
``distribution`` (outputs → p(y | draw)), ``expected`` (their moments → E log p), ``of_tokens``, ``check`` (targets),
``accept``, ``advice``, ``observation``, ``without_answers``, ``draw_mean``, ``log_density``, ``summarise`` (sums over
draws that can be added up chunk by chunk), ``predict`` (sums → :class:`Prediction`), ``predict_held`` (all draws of a
batch → the same, where ``holds_draws``), ``config`` and ``from_config``. Total = aleatoric + epistemic, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import _splits
from bayes_adapters.likelihoods._checks import require_support
from bayes_adapters.likelihoods.gaussian_outputs import GaussianOutputs
from bayes_adapters.likelihoods.prediction import Prediction


class Likelihood(nn.Module):
    """Base of all likelihoods. A subclass needs ``name``, ``num_outputs`` and ``distribution``; the rest has defaults.

    The defaults ask the distribution: for its support (:meth:`check`), and, for the split of uncertainty, for its class
    probabilities, or for its mean, variance and entropy. Where it does not know them, override :meth:`summarise` and
    :meth:`predict`. Constructor arguments other than tensors belong into :meth:`config`.

    >>> import pyro.distributions as dist
    >>> class LaplaceNoise(Likelihood):
    ...     name, num_outputs = "laplace_noise", 1
    ...     def distribution(self, outputs):
    ...         return dist.Laplace(outputs[..., 0], 1.0)
    >>> noise = LaplaceNoise()
    >>> sums = noise.summarise(noise.distribution(torch.tensor([[[-1.0]], [[1.0]]])))  # two draws of one example
    >>> noise.predict(sums, 2).variance  # 2 of the noise, 1 of the draws' means
    tensor([3.])
    """

    name: ClassVar[str]
    """The registered name, as written into saved adapters."""
    num_outputs: int
    """K: the numbers that the head must produce for each target."""
    per_token: ClassVar[bool] = False
    """Whether there is one target per token, rather than one per example."""
    apart: ClassVar[bool] = False
    """Whether, with one target per token, its density depends on that token's outputs only: a pixel's, between the
    cells of a mask, does not."""
    separable: ClassVar[bool] = False
    """Whether log p(y | f) is a sum over the outputs, each term of one f_k; where K = 1 it is."""
    bounded: ClassVar[bool] = False
    """Whether log p(y | f) ≤ 0 for all y and f: probabilities of classes, labels, counts, not densities of numbers."""
    smooth: ClassVar[bool] = True
    """Whether log p(y | f) has a second derivative in f everywhere, as a Laplace approximation assumes."""
    compares: ClassVar[bool] = False
    """Whether an example's density depends on the other rows of its batch, which are then of one draw with it."""
    two_sides: ClassVar[bool] = False
    """Whether the outputs are two embeddings side by side, each of which may see its own side only."""
    has_expected: ClassVar[bool] = False
    """Whether there is :meth:`expected`."""
    expected_predicts: ClassVar[bool] = False
    """Whether :meth:`summarise` and :meth:`log_density` take what :meth:`expected` returns, and are exact."""

    holds_draws: ClassVar[bool] = False
    """Whether :meth:`predict_held` looks at all draws of a batch together, in the place of sums over them."""

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> TorchDistributionMixin:
        """Return p(y | draw) with batch shape (*S, B)."""
        raise NotImplementedError

    def expected(self, outputs: GaussianOutputs) -> TorchDistributionMixin:
        """Return what scores targets under outputs ``f ~ N(m, v)`` that are not drawn.

        Its ``log_prob(y)`` is ``E_f log p(y | f)``, or a lower bound of it; batch shape (*S, B). Where
        ``has_expected`` is false there is none, and a head has to draw its outputs.
        """
        raise NotImplementedError

    def of_tokens(self, outputs: Float[Tensor, "*S B T K"], real: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        """Return p(y | draw) with batch shape (*S, B) and event shape (T,), padding left out; if ``per_token``."""
        raise NotImplementedError

    def check(self, targets: Tensor) -> None:
        """Raise :class:`DataError` if a target lies outside the support; by default that of the distribution at 0."""
        shape = (*targets.shape[: 1 + self.per_token], self.num_outputs)
        outputs = torch.zeros(shape, device=targets.device)
        with torch.no_grad():
            fn = self.of_tokens(outputs, None) if self.per_token else self.distribution(outputs)
        require_support(type(self).__name__, fn, targets)

    def accept(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        """Raise :class:`DataError` unless ``targets``, as a batch has them, are this likelihood's.

        Targets of several tasks are for :class:`bayes_adapters.likelihoods.Tasks` only.
        """
        if isinstance(targets, Mapping):
            raise DataError(
                f"targets names the tasks {sorted(targets)}, and {type(self).__name__} takes one tensor. Pass that "
                "tensor, or take Tasks({name: likelihood})."
            )
        self.check(targets)

    def advice(self, targets: Any) -> list[str]:
        """Return what to warn of before training on ``targets``, such as a unit far from the likelihood's own."""
        return []

    def observation(self, fn: TorchDistributionMixin, targets: Any) -> Tensor:
        """Return the targets as the value of Pyro's site ``obs``, whose distribution is ``fn``: a tensor."""
        return targets

    def without_answers(self, targets: Any) -> Any:
        """Return what of the targets is known before they are answered, and a prediction needs: by default nothing."""
        return None

    def draw_mean(self, fn: TorchDistributionMixin) -> Float[Tensor, "S B ..."]:
        """Return each draw's predictive mean: class probabilities, or the expected target.

        Args:
            fn: what :meth:`distribution` returned, batch shape (S, B).

        Raises:
            ConfigError: the distribution does not know its mean.
        """
        base = base_distribution(fn)
        # The mean of a class number is NaN; what is averaged over draws are the probabilities of the classes.
        categorical = isinstance(base, torch.distributions.Categorical)
        return base.probs if categorical else self._ask(fn, "mean")

    def log_density(self, fn: TorchDistributionMixin, targets: Any) -> Float[Tensor, "S B"]:
        """Return log p(targets | draw), nats, whose average over draws :func:`bayes_adapters.predict` reports."""
        return fn.log_prob(targets)

    def summarise(self, fn: TorchDistributionMixin) -> dict[str, Float[Tensor, "..."]]:
        """Sum over draws what :meth:`predict` needs; ``fn`` has batch shape (S, B).

        Raises:
            ConfigError: the distribution knows neither class probabilities nor mean, variance and entropy.
        """
        mean = self.draw_mean(fn)
        if isinstance(base_distribution(fn), torch.distributions.Categorical):
            return _splits.class_sums(mean)
        return _splits.moment_sums(mean, self._ask(fn, "variance"), self._ask(fn, "entropy"))

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        """Average the sums of ``num_samples`` draws."""
        if "variance" in sums:
            return _splits.moment_prediction(sums, num_samples)
        return _splits.class_prediction(sums, num_samples)

    def predict_held(self, draws: Sequence[Any], targets: Any) -> Prediction:
        """Average what :meth:`distribution` returned for all draws of a batch; where ``holds_draws``.

        Args:
            draws: each of batch shape (n, B).
            targets: those of the batch, or None. The prediction has their ``log_density``.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any], find: Callable[[str], type[Likelihood]]) -> Likelihood:  # noqa: ARG003
        """Build the likelihood that has this :meth:`config`; ``find`` gives the class of a name, for nested ones."""
        return cls(**config)

    def _ask(self, fn: Any, what: str) -> Tensor:
        try:
            found = getattr(fn, what)
            return found() if callable(found) else found
        except (NotImplementedError, AttributeError) as error:
            raise ConfigError(
                f"The {what} of {type(base_distribution(fn)).__name__} is not known, and prediction with "
                f"{type(self).__name__} needs it. Override draw_mean(), summarise() and predict() of the likelihood, "
                "or take a distribution that has mean, variance and entropy."
            ) from error
