"""The next token of a text, at every token that has a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.distributions.token_logits import NextTokens, TokenLogits, scored_places
from bayes_adapters.errors import whole_number
from bayes_adapters.likelihoods._checks import require_token_logits, require_words, stands_alone
from bayes_adapters.likelihoods._splits import above_rounding
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.text_prediction import TextPrediction, log_mean, scattered

_AT_ONCE = 2**22
"""Probabilities of all draws that are float64 at one time, 32 MB; at least those of one token of all S·B rows."""


class NextToken(Likelihood):
    """``y_t ~ Categorical(softmax(f_t))`` over a vocabulary, for the tokens of a text that have a label.

    Targets: int64 of shape (B, T), as long as the tokens that the model reads: ``labels = input_ids.clone()``, with
    −100 at padding and at the tokens of a prompt, which are then read and not learnt.

    **The shift.** ``labels[t]`` is the token that stands at t. A causal model predicts it by its logits at t − 1, and
    nothing predicts a text's first token, whose label does not count (with padding on the left Hugging Face's loss has
    it predicted by padding). A decoder of an encoder–decoder reads ``decoder_input_ids``, which are the labels behind a
    start token, so that the logits at t predict ``labels[t]``. That is the convention of ``labels=``: the labels of
    Hugging Face's collators are the targets here, and are shifted by nobody else.

    Density: ``log p(y | x, E) = Σ_t log softmax(f_{t − shift})[y_t]`` over labelled tokens, nats; the nll of an example
    is that **sum**, as a text is one datum of the ELBO. Memory: logits are made of hidden states some tokens at a time,
    in float32, and a second time on the way back; those of all tokens never exist together, unless the head is
    ``LanguageModelHead(recompute=False)``.

    Prediction is a :class:`TextPrediction`: entropies of every token, the ``top`` most probable ones, and densities,
    perplexity and mutual information of whole texts.

    Args:
        vocab_size: V: ``model.get_output_embeddings().out_features``, the size of the output layer, which may be larger
            than the tokenizer's.
        top: k, the probabilities kept of each token.

    >>> likelihood = NextToken(9)
    >>> logits = torch.zeros(1, 4, 9)  # one text of 4 tokens
    >>> text = torch.tensor([[3, 5, -100, 7]])  # 3 is not predicted, the third token has no label
    >>> likelihood.distribution(logits).log_prob(text).exp() * 9**2
    tensor([1.0000])
    """

    name: ClassVar[str] = "next_token"
    per_token: ClassVar[bool] = True
    apart: ClassVar[bool] = True
    holds_draws: ClassVar[bool] = True

    def __init__(self, vocab_size: int, top: int = 5) -> None:
        super().__init__()
        whole_number("vocab_size", vocab_size, 2)
        whole_number("top", top)
        self.num_outputs, self.top = vocab_size, min(top, vocab_size)

    def distribution(self, outputs: TokenLogits | Float[Tensor, "*S B T V"]) -> TorchDistributionMixin:
        return self.of_tokens(outputs, None)

    def of_tokens(self, outputs: TokenLogits | Float[Tensor, "*S B T V"], real: Tensor | None) -> NextTokens:
        if isinstance(outputs, Tensor):  # those of a causal model
            rows = outputs.reshape(-1, *outputs.shape[-2:])
            outputs = TokenLogits.of(rows, 1, tuple(outputs.shape[:-2]))
        require_token_logits(outputs, self.num_outputs)
        return NextTokens(outputs, real)

    def check(self, targets: Tensor) -> None:
        require_words(targets, self.num_outputs)

    def draw_mean(self, fn: Any) -> Tensor:
        raise stands_alone(
            type(self).__name__, "return_samples=True would keep S·B·T·V probabilities. The k largest are in mean"
        )

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        raise stands_alone(type(self).__name__, "it is no task among others in Tasks")

    @torch.no_grad()
    def predict_held(self, draws: Sequence[NextTokens], targets: Int[Tensor, "B T"] | None) -> TextPrediction:
        """Average the draws of a batch, some tokens at a time, in float64.

        Args:
            draws: each of batch shape (n, B); S draws in all.
            targets: labels, or None.
        """
        first = draws[0]
        scored = first.real if targets is None else first.scored(targets)
        places, real = scored_places(scored)
        held = [fn.token_logits.at(places) for fn in draws]
        labels = None if targets is None else torch.where(real, targets.gather(1, places), 0)
        size = sum(len(one.hidden) for one in held) * self.num_outputs
        step, found = max(1, _AT_ONCE // size), _Found()
        past = held[0].hidden.new_zeros(size // self.num_outputs // len(places), len(places), dtype=torch.float64)
        for start in range(0, places.shape[1], step):
            tokens = slice(start, start + step)
            past = found.add(
                held, None if labels is None else labels[:, tokens], real[:, tokens], past, tokens, self.top
            )
        parts = found.joined(places, scored.shape[1])
        epistemic = above_rounding(parts["total"] - parts["aleatoric"])
        return TextPrediction(
            mean=parts["mean"].float(),
            total=parts["total"].float(),
            aleatoric=(parts["total"] - epistemic).float(),
            epistemic=epistemic.float(),
            num_samples=len(past),
            tokens=parts["tokens"],
            scored=scored,
            target_probs=None if labels is None else parts["target"].float(),
            log_density=None if labels is None else log_mean(past).float(),
            information=None if labels is None else above_rounding(parts["information"].sum(1)).float(),
        )

    def config(self) -> dict[str, Any]:
        return {"vocab_size": self.num_outputs, "top": self.top}


class _Found(dict[str, list[Tensor]]):
    """Name → what the chunks of tokens have told, each (B, n, …)."""

    def add(
        self,
        held: Sequence[TokenLogits],
        labels: Int[Tensor, "B n"] | None,
        real: Tensor,
        past: Float[Tensor, "S B"],
        tokens: slice,
        top: int,
    ) -> Float[Tensor, "S B"]:
        """Take in some tokens of all draws; ``past`` is each draw's log density so far, and is returned further."""
        wide = [float64(one.project(one.hidden[:, tokens])).unflatten(0, one.batch) for one in held]
        logs = torch.cat([part.log_softmax(-1) for part in wide])  # (S, B, n, V)
        del wide
        probs = logs.exp()
        entropies = torch.special.entr(probs).sum(-1)  # (S, B, n)
        mean = probs.mean(0)
        best, which = mean.topk(top, -1)
        found = {"total": torch.special.entr(mean).sum(-1), "aleatoric": entropies.mean(0)}
        found |= {"mean": best * real[..., None], "tokens": which * real[..., None]}
        if labels is not None:
            found["target"] = mean.gather(-1, labels[..., None])[..., 0]
            index = labels[None, ..., None].expand(len(logs), *labels.shape, 1)
            each = logs.gather(-1, index)[..., 0] * real  # (S, B, n)
            before = past[..., None] + each.cumsum(-1) - each
            weights = before.softmax(0)
            mixed = torch.stack([_mixture(weights[..., n], probs[..., n, :]) for n in range(real.shape[1])], -1)
            found["information"] = above_rounding(mixed - (weights * entropies).sum(0))
            past = past + each.sum(-1)
        for name, value in found.items():
            self.setdefault(name, []).append(value if value.dim() > 2 else value * real)
        return past

    def joined(self, places: Tensor, length: int) -> dict[str, Tensor]:
        """Return name → values of all T tokens, zero where none is scored."""
        return {name: scattered(torch.cat(values, 1), places, length) for name, values in self.items()}


def _mixture(weights: Float[Tensor, "S B"], probs: Float[Tensor, "S B V"]) -> Float[Tensor, " B"]:
    """The entropy of ``Σ_s w_s p_s``, nats."""
    return torch.special.entr(torch.einsum("sb,sbv->bv", weights, probs)).sum(-1)
