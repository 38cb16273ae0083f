"""``Contrastive``: which pairs of a batch belong together, by two embeddings per pair (symmetric InfoNCE)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.distributions import Matching
from bayes_adapters.errors import whole_number
from bayes_adapters.likelihoods._match_checks import (
    MOST_LOG_SCALE,
    MOST_SCALE,
    require_candidates,
    require_groups,
    require_scale,
)
from bayes_adapters.likelihoods._splits import class_sums
from bayes_adapters.likelihoods.base import Likelihood


class Contrastive(Likelihood):
    """``log p_b = ½ log Σ_{k in g(b)} softmax_k(s_bk) + ½ log Σ_{k in g(b)} softmax_k(s_kb)``, the symmetric InfoNCE.

    ``s_bk = e^τ cos(u_b, v_k)``. Outputs are two embeddings side by side, K = 2d: u_b of the first side of pair b, v_b
    of its second. Targets are the numbers g of groups, int64 (B,): rows with equal numbers, such as recordings of one
    text, are right partners of each other and never wrong ones. Where all differ the mean loss is CLIP's. See
    :class:`~bayes_adapters.distributions.Matching`.

    **What it is.** Each half is the probability that b picks a right partner among the candidates, which are the B rows
    of its batch in the same draw. The product over rows is a composite likelihood: rows are not independent, so a
    posterior under it is a generalised one, whose width a ``kl_weight`` sets.

    **Its scale.** The model's density takes N/B times the sum over rows: N choices, each among B candidates. With other
    batch sizes it is another density: chance is log B, and B candidates give at most log B nats of the two sides'
    mutual information. The average over batches is thus *not* the factor among all N, and no number of steps mends
    that. Compare losses at one batch size. A smaller last batch has easier choices: leave it out (``drop_last``).
    Micro-batches of ``accumulate``, and processes of torchrun, see their own candidates only.

    **Prediction** treats a batch as a query list: ``mean`` (B, B) has P(partner of row b is row k), for the first
    sides; total, aleatoric and epistemic are of that choice, nats. With a gallery, and in the other direction:
    :func:`bayes_adapters.inference.similarities`.

    Every row's noise has to be of one draw, or candidates would be embedded by different functions: ``flipout`` and
    local reparametrisation are refused.

    Args:
        dim: d, width of an embedding.
        scale: e^τ at the start; τ is trained, and e^τ is at most 100.

    Source: van den Oord et al. 2018, arXiv 1807.03748 (InfoNCE); Radford et al. 2021, arXiv 2103.00020 (symmetric, with
    a trained scale). The sum over a group within the logarithm is the marginal likelihood of a choice of which only the
    group is known.

    >>> likelihood = Contrastive(2, scale=1.0)
    >>> outputs = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 3.0]])  # u and v of two pairs
    >>> fn = likelihood.distribution(outputs)
    >>> fn.scores
    tensor([[1., 0.],
            [0., 1.]], grad_fn=<MulBackward0>)
    >>> fn.log_prob(torch.tensor([0, 1])).exp().detach()
    tensor([0.7311, 0.7311])
    """

    name: ClassVar[str] = "contrastive"
    bounded: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    two_sides: ClassVar[bool] = True

    def __init__(self, dim: int, scale: float = 1 / 0.07) -> None:
        super().__init__()
        whole_number("dim", dim)
        require_scale(scale, MOST_SCALE)
        self.dim, self.first_scale, self.num_outputs = dim, scale, 2 * dim
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """e^τ, at most 100: the factor of cosines. Beyond that a gradient may only bring τ back."""
        above = self.log_scale.detach() >= MOST_LOG_SCALE
        scale = self.log_scale - (self.log_scale.detach() - MOST_LOG_SCALE).clamp_min(0.0)
        if scale.requires_grad:  # min() would have no gradient at all there, and τ would stay for good
            scale.register_hook(lambda grad: grad.masked_fill(above & (grad < 0), 0.0))
        return scale.exp()

    def distribution(self, outputs: Float[Tensor, "*S B K"]) -> Matching:
        first, second = (F.normalize(side, dim=-1) for side in outputs.float().split(self.dim, -1))
        return Matching(first, second, self.scale, validate_args=False)

    def check(self, targets: Tensor) -> None:
        require_groups(targets)

    def draw_mean(self, fn: Any) -> Float[Tensor, "S B B"]:
        return fn.probs

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        require_candidates(fn.batch_shape[-1])
        return class_sums(fn.probs)

    def config(self) -> dict[str, Any]:
        return {"dim": self.dim, "scale": self.first_scale}
