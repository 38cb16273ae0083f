"""A Gaussian with the precision of a prior plus a curvature, whose prior may be changed at no cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.distributions._checks import require_blocks, require_curvature
from bayes_adapters.distributions._curved import Curved
from bayes_adapters.distributions.shrunk_normal import Block, ShrunkNormal
from bayes_adapters.errors import positive_number


class CurvedGaussian(Curved):
    """``N(m, (λ S⁻² + H)⁻¹)`` over D numbers, with ``S H S = diag(h) + Σ_b U_b diag(e_b) U_bᵀ``.

    S is a diagonal of prior standard deviations. All of it is buffers: it is saved and loaded, and not trained.

    Args:
        start: m at the start, shape (D,).
        blocks: (first entry, entry after the last, k) for each block with k directions; none is a diagonal H.
        scale: S at the start.

    Raises:
        ConfigError: blocks that share entries, lie outside 0 … D or have more directions than entries.

    >>> gaussian = CurvedGaussian(torch.zeros(2), [], scale=0.5)
    >>> gaussian.rescale(4.0)
    >>> gaussian().variance
    tensor([0.0625, 0.0625])
    """

    def __init__(self, start: Float[Tensor, " D"], blocks: Sequence[Sequence[int]], scale: float) -> None:
        super().__init__()
        positive_number("scale", scale)
        self.blocks = require_blocks(blocks, len(start))
        self.register_buffer("loc", start)
        self.register_buffer("deviation", torch.full_like(start, scale))
        self.register_buffer("diagonal", torch.zeros_like(start))
        self.register_buffer("log_precision", start.new_zeros(()))
        for number, (first, last, count) in enumerate(self.blocks):
            self.register_buffer(f"directions_{number}", torch.eye(last - first, count, device=start.device))
            self.register_buffer(f"curvature_{number}", start.new_zeros(count))

    def place(
        self,
        loc: Float[Tensor, " D"],
        deviation: Float[Tensor, " D"],
        diagonal: Float[Tensor, " D"] | None,
        directions: Sequence[tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]],
    ) -> None:
        """Set m, S, h and (U_b, e_b) of each block.

        Args:
            loc: m.
            deviation: the diagonal of S, positive.
            diagonal: h ≥ 0; None is 0.
            directions: one pair for each block, in their order; e_b ≥ 0.

        Raises:
            ConfigError: an entry is negative, NaN or infinite: the precision would not be positive definite.
        """
        require_curvature(deviation, [diagonal] if diagonal is not None else [e for _, e in directions])
        held = {"loc": loc, "deviation": deviation}
        held["diagonal"] = torch.zeros_like(loc) if diagonal is None else diagonal
        for number, (along, curvature) in enumerate(directions):
            held |= {f"directions_{number}": along, f"curvature_{number}": curvature}
        self._hold(held)

    def projected(self, rows: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
        """Return ``Tᵀ v`` for each row v: ``Cov(v·w, v'·w)`` is the product of two of them."""
        return self().projected(rows)

    def forward(self) -> ShrunkNormal:
        """Return the Gaussian: batch shape (), event shape (D,)."""
        precision = self.get_buffer("log_precision").exp()
        scale = self.get_buffer("deviation") * (precision + self.get_buffer("diagonal")).rsqrt()
        blocks: list[Block] = []
        for number, (first, last, _) in enumerate(self.blocks):
            shrink = (precision / (precision + self.get_buffer(f"curvature_{number}"))).sqrt()
            blocks.append((slice(first, last), self.get_buffer(f"directions_{number}"), shrink))
        return ShrunkNormal(self.get_buffer("loc"), scale, blocks, validate_args=False)
