"""VeRA (Kopiczko et al. 2023, arXiv 2310.11454) as a third party would write it: ``h = W₀ x + s · Λ_b B Λ_d A x``.

A and B are random, frozen and the same in all layers of one size; the diagonals d and b are Bayesian.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import AdapterModel, registry
from bayes_adapters.adapters.linear import AdaptedLinear, Times, kaiming
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site

D = Part("d", ("r",), diagonal=True)
B = Part("b", ("d_out",), diagonal=True)


class VeRALayer(AdaptedLinear):
    learned: ClassVar[tuple[Part, ...]] = (D, B)

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, **options: Any) -> None:
        super().__init__(base_layer, rank, alpha, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # shared: the same numbers in every layer of this size
            self.register_buffer("A", kaiming(rank, base_layer.in_features), persistent=False)
            self.register_buffer("B", kaiming(base_layer.out_features, rank), persistent=False)

    def initial(self, part: Part, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 0.1 if part == D else 0.0)

    def update(self, x: Tensor, times: Times) -> Tensor:
        return times(B, F.linear(times(D, F.linear(x, self.A)), self.B))

    def as_lora(self, values: Mapping[Part, Tensor]) -> tuple[Tensor, Tensor]:
        d, b = values.get(D, self.lora_d), values.get(B, self.lora_b)
        return d[:, None] * self.A, b[:, None] * self.B


@registry.register
class VeRA(AdapterModel):
    structure: ClassVar[str] = "vera"
    layer: ClassVar[type[AdaptedLinear]] = VeRALayer

    def __init__(self, backbone: nn.Module, likelihood: Likelihood, *, num_data: int, **options: Any) -> None:
        random = {"parts": [D, B], "granularity": Granularity.GLOBAL, "num_data": num_data}
        super().__init__(backbone, likelihood, **random, **options)

    def start(self, site: Site) -> Tensor:
        return torch.full(site.shape, 0.1 if site.part == D else 1e-3)

    def config(self) -> dict[str, Any]:
        return super().config() | {"num_data": self.num_data}
