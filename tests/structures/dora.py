"""DoRA (Liu et al. 2024, arXiv 2402.09353) as a third party would write it.

``h = m ⊙ V x / ‖V‖`` with ``V = W₀ + s · B A``. ‖V‖ holds the lengths of V's rows, without a gradient as in the paper;
the magnitudes m are Bayesian.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import AdapterModel, adapted_layers, registry
from bayes_adapters.adapters.linear import AdaptedLinear, Times
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site

MAGNITUDE = Part("magnitude", ("d_out",), diagonal=True)


class DoRALayer(AdaptedLinear):
    learned: ClassVar[tuple[Part, ...]] = (Part.A, Part.B, MAGNITUDE)

    def initial(self, part: Part, shape: tuple[int, ...]) -> Tensor:
        return self.base_layer.weight.norm(dim=1) if part == MAGNITUDE else super().initial(part, shape)

    def update(self, x: Tensor, times: Times) -> Tensor:
        frozen = self.base_layer.weight
        whole = frozen + self.scaling * self.lora_B @ self.lora_A
        direction = F.linear(x, whole / whole.norm(dim=1, keepdim=True).detach())
        return (times(MAGNITUDE, direction) - F.linear(x, frozen)) / self.scaling  # the layer adds it to W₀ x


@registry.register
class DoRA(AdapterModel):
    structure: ClassVar[str] = "dora"
    layer: ClassVar[type[AdaptedLinear]] = DoRALayer

    def __init__(
        self, backbone: nn.Module, likelihood: Likelihood, *, num_data: int, prior: Any = None, **options: Any
    ) -> None:
        def around_the_norm(site: str, _shape: tuple[int, ...]) -> Any:
            norm = backbone.get_submodule(site.removeprefix("magnitude.")).weight.norm(dim=1)
            return dist.Normal(norm.detach(), torch.full_like(norm, 0.1))

        random = {"parts": [MAGNITUDE], "granularity": Granularity.GLOBAL, "num_data": num_data, "grouped": False}
        super().__init__(backbone, likelihood, prior=prior or around_the_norm, **random, **options)

    def start(self, site: Site) -> Tensor:
        layer = adapted_layers(self.backbone)[site.layers[0]]
        return layer.initial(MAGNITUDE, site.event).detach().clone()[None]

    def config(self) -> dict[str, Any]:
        own = {name: value for name, value in super().config().items() if name != "grouped"}
        return own | {"num_data": self.num_data}
