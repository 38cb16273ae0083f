"""What :func:`bayes_adapters.generation.generate` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Writing(StrEnum):
    """Who writes a text."""

    AVERAGE = "average"
    """All draws together: the next token is one of the average of their distributions (Bayesian model averaging)."""
    EACH = "each"
    """Every draw its own text, one of S hypotheses."""


@dataclass(frozen=True)
class Generation:
    """Texts that follow B prompts, and how sure the draws were of each token. N rows: B, or S·B in the order [S, B].

    Uncertainties are those of the next-token distributions as the model says them, before a temperature of sampling,
    top-k or any other processor of Hugging Face's changes them. With ``writing="average"`` the S draws see one text:
    ``p̄ = (1/S) Σ p_s``, total ``H[p̄]``, aleatoric ``(1/S) Σ H[p_s]`` and epistemic their difference, the mutual
    information of next token and draw given the text so far. With ``"each"`` a row has one draw: total and aleatoric
    are its entropy, and epistemic is 0.

    Args:
        tokens: shape (N, T), int64: what was written, without the prompt.
        written: shape (N, T), True where a token was written, its end-of-sequence token included; False behind it.
        total, aleatoric, epistemic: shape (N, T), nats, 0 where nothing was written.
        log_probs: shape (N, T), nats: log p̄ of the token that was written; 0 where none was.
        draw_log_probs: shape (S, B, T), nats: log p_s of it under every draw; with ``"each"`` those of the draw that
            wrote it.
        num_samples: S.
        writing: who wrote.
        texts: N texts, without special tokens; None where no tokenizer was given.
    """

    tokens: Int[Tensor, "N T"]
    written: Bool[Tensor, "N T"]
    total: Float[Tensor, "N T"]
    aleatoric: Float[Tensor, "N T"]
    epistemic: Float[Tensor, "N T"]
    log_probs: Float[Tensor, "N T"]
    draw_log_probs: Float[Tensor, "S B T"]
    num_samples: int
    writing: Writing
    texts: Sequence[str] | None = None

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """How many tokens each row has."""
        return self.written.sum(-1)

    @property
    def sequence_log_prob(self) -> Float[Tensor, " N"]:
        """The log probability of each text, nats: the sum of ``log_probs``.

        With ``"average"`` it is ``Σ_t log p̄(y_t | y_<t)``, by which the tokens were chosen: each step weighs the draws
        alike. The mixture of whole texts, ``log (1/S) Σ_s p_s(y)``, is :attr:`mixture_log_prob`.
        """
        return self.log_probs.sum(-1)

    @property
    def mixture_log_prob(self) -> Float[Tensor, " N"]:
        """``log (1/S) Σ_s Π_t p_s(y_t | y_<t)``, nats; with ``"each"`` log p_s(y) of the row's own draw."""
        if self.writing is Writing.EACH:
            return self.sequence_log_prob
        whole = self.draw_log_probs.sum(-1)
        return whole.logsumexp(0) - whole.new_tensor(float(len(whole))).log()

    @property
    def perplexity(self) -> Float[Tensor, " N"]:
        """``exp(−sequence_log_prob / lengths)``, per token; NaN for an empty text."""
        return (-self.sequence_log_prob / self.lengths).exp()

    def mean(self, part: str = "epistemic") -> Float[Tensor, " N"]:
        """Return the mean over each row's written tokens of ``total``, ``aleatoric`` or ``epistemic``, nats per token.

        NaN for an empty text.
        """
        values: Tensor = getattr(self, part)
        return values.sum(-1) / self.lengths

    def hypotheses(self) -> list[list[str]]:
        """Return the S texts of every prompt, prompt by prompt: of ``writing="each"`` with a tokenizer.

        Raises:
            ConfigError: there is one text per prompt, or no tokenizer was given.
        """
        from bayes_adapters.generation._checks import require_hypotheses

        texts = require_hypotheses(self.texts, self.writing)
        prompts = len(texts) // self.num_samples
        return [list(texts[b::prompts]) for b in range(prompts)]
