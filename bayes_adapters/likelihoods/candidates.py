"""``Candidates``: which of a query's candidates is the right one, each scored together with the query."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.distributions import IGNORED, ListChoice
from bayes_adapters.distributions.choice import same_list
from bayes_adapters.likelihoods._match_checks import require_known_lists, require_lists
from bayes_adapters.likelihoods._splits import split
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction


class Candidates(Likelihood):
    """``log p_q = log Σ_{k right} softmax_{k in list q}(f_k)``: f_k is the score of the pair (query q, candidate k).

    A row is a pair, and its score one number: the way to retrieve with a model in which one side's representation
    depends on the other (CoLA, Wander, CALIBER with the other side as its context), where no side has an embedding of
    its own. Targets are int64 (B, 2): the number of the row's list, and 1 where the pair is right, 0 where it is wrong,
    −100 where that is not known; a list of which nothing is known contributes nothing. Several rows of a list may be
    right. :func:`bayes_adapters.data.pairs.all_pairs` makes such batches. A batch holds lists whole.

    Each of the n_q rows of a list has the factor ``(1/n_q) log p_q``, so that a list counts once: N (``num_data``) is
    the number of *rows*, n_q for each query. Lists are independent given a draw, and the likelihood is a proper one:
    conditional logit. If rows match independently with log-odds f_k (:class:`Bernoulli`), it is their likelihood given
    that one row of each list matches; so a :class:`Bernoulli` model's logits can be compared in the same way.

    **Prediction** needs the lists, so targets: ``mean`` (B,) is each row's probability in its list, averaged over
    draws; total, aleatoric and epistemic, nats, are of the row's list. A draw's ``samples`` are scores. To compare
    every query with every candidate: :func:`bayes_adapters.inference.similarities`.

    Source: McFadden 1974 (conditional logit).

    >>> likelihood = Candidates()
    >>> fn = likelihood.distribution(torch.tensor([[[2.0], [0.0], [1.0]]]))  # one draw, a list of three
    >>> likelihood.predict_held([fn], torch.tensor([[0, -100]] * 3)).mean
    tensor([0.6652, 0.0900, 0.2447])
    """

    name: ClassVar[str] = "candidates"
    num_outputs = 1
    bounded: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    holds_draws: ClassVar[bool] = True

    def distribution(self, outputs: Float[Tensor, "*S B 1"]) -> ListChoice:
        return ListChoice(outputs[..., 0].float(), validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_lists(targets)

    def without_answers(self, targets: Any) -> Any:
        """Return the lists, int64 (B, 2): which rows belong together is known, which of them are right is not."""
        return None if targets is None else torch.stack([targets[:, 0], torch.full_like(targets[:, 1], IGNORED)], -1)

    def draw_mean(self, fn: Any) -> Float[Tensor, "S B"]:
        return fn.scores

    def predict_held(self, draws: Sequence[Any], targets: Any) -> Prediction:
        require_known_lists(targets)
        together = same_list(targets)
        fn = ListChoice(float64(torch.cat([one.scores for one in draws])), validate_args=False)
        probs = fn.log_probs_in(together.to(fn.scores.device)).exp()
        mean, lists = probs.mean(0), together.to(probs)
        total, aleatoric = torch.special.entr(mean) @ lists, (torch.special.entr(probs) @ lists).mean(0)
        found = split(mean, total, aleatoric, len(probs))
        if bool((targets[:, 1] == IGNORED).all()):
            return found
        sizes = lists.sum(-1)
        densities = fn.log_prob(targets.to(sizes.device)) * sizes  # of a row's list
        averaged = (densities.logsumexp(0) - math.log(len(probs))) / sizes
        return replace(found, log_density=averaged.float())
