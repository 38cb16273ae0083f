"""A random core between factors that are no LoRA's: one for the data set, and nearly 0 at the start."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models.stochastic_core import StochasticCore
from bayes_adapters.sites import Granularity, Part, Site


class SmallCore(StochasticCore):
    """A :class:`StochasticCore` whose B is not 0 at the start, so that E starts near 0 instead, at N(0, s²).

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        granularity: see :class:`StochasticCore`; ``"global"`` by default.
        **options: further options of :class:`StochasticCore`.
    """

    start_scale: ClassVar[float]
    """s."""

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        granularity: Granularity | str = Granularity.GLOBAL,
        **options: Any,
    ) -> None:
        super().__init__(backbone, likelihood, granularity=granularity, **options)

    def start(self, site: Site) -> Tensor:
        if site.part != Part.CORE:
            return super().start(site)
        return self.start_scale * torch.randn(site.shape, device=next(self.parameters()).device)
