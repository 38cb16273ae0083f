"""What :func:`bayes_adapters.predict` returns of texts: numbers of each token, and of each text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class TextPrediction(Prediction):
    """The posterior predictive of the tokens of B texts, each given the true tokens before it, averaged over S draws.

    The whole average, (B, T, V), is not kept: ``mean`` holds its k largest entries. What has the shape (B, T) stands at
    the token that is predicted, and is zero where ``scored`` is False.

    Args:
        mean: shape (B, T, k): the k largest probabilities ``p̄(y_t = v | y_<t) = (1/S) Σ_s p(v | y_<t, E_s)``, largest
            first.
        total: shape (B, T), nats: ``H[p̄]`` of the whole vocabulary.
        aleatoric: shape (B, T), nats: ``(1/S) Σ_s H[p_s]``.
        epistemic: shape (B, T), nats: their difference, the mutual information of that token and the draw.
        tokens: shape (B, T, k), int64: the token of each entry of ``mean``.
        scored: shape (B, T), bool: tokens with a label; without targets, all that follow another token.
        target_probs: shape (B, T): p̄ of the text's own tokens; None without targets.
        log_density: shape (B,), nats: ``log (1/S) Σ_s Π_t p(y_t | y_<t, E_s)``, the whole text's; None without targets.
        information: shape (B,), nats: mutual information of the whole text and the draw. By the chain rule it is
            ``I(Y; E) = Σ_t E_{y_<t} I(y_t; E | y_<t)``, and given y_<t the draws have the weights
            ``w_s ∝ Π_{u<t} p(y_u | y_<u, E_s)``. This is the sum at the given text, ``Σ_t H[Σ_s w_s p_s] − Σ_s w_s
            H[p_s]``: an unbiased Monte-Carlo estimate from one text, where the text is drawn from the averaged model
            itself; of any other text it says how much its tokens could still tell of the draw, at each step. It is at
            most ``log S`` on average. None without targets.
    """

    tokens: Tensor
    scored: Tensor
    target_probs: Tensor | None = None
    information: Tensor | None = None

    @property
    def nll_per_token(self) -> Tensor:
        """Shape (B,), nats: ``−log_density`` divided by the tokens that are scored; infinite where none are.

        Raises:
            ConfigError: there were no targets.
        """
        return -self._density() / self.scored.sum(1)

    @property
    def perplexity(self) -> Tensor:
        """Shape (): ``exp(−Σ_b log_density_b / Σ_b n_b)``, n_b being the scored tokens of text b.

        The averaged model's own: its density of a text is the average of densities, not the product of averaged
        probabilities of tokens, ``target_probs``.

        Raises:
            ConfigError: there were no targets.
        """
        return (-self._density().sum() / self.scored.sum()).exp()

    def averaged(self) -> Prediction:
        """Return the prediction with total, aleatoric and epistemic averaged over scored tokens: shape (B,)."""
        found, count = self.summed(), self.scored.sum(1).clamp_min(1)
        return replace(
            found,
            total=found.total / count,
            aleatoric=found.aleatoric / count,
            epistemic=found.epistemic / count,
            local=None if found.local is None else found.local / count,
        )

    def _density(self) -> Tensor:
        if self.log_density is None:
            raise ConfigError("There is no log_density: the batch had no targets. Pass Batch(inputs, targets=labels).")
        return self.log_density


def scattered(values: Tensor, places: Tensor, length: int) -> Tensor:
    """Return ``values`` (B, n, …), zero where a place is filled up, at their ``places`` (B, n) of ``length`` tokens."""
    out = values.new_zeros(len(values), length, *values.shape[2:])
    return out.scatter_add(1, places.reshape(*places.shape, *[1] * (values.dim() - 2)).expand_as(values), values)


def log_mean(densities: Tensor) -> Tensor:
    """Return ``log (1/S) Σ_s exp(densities_s)``, shape (B,), of densities (S, B)."""
    return torch.logsumexp(densities, 0) - torch.tensor(float(len(densities))).log().item()
