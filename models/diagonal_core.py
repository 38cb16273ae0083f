"""LoRA with a random diagonal core: the model of ScalaBL."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers, restored_on_error
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models._checks import require_singular_values
from bayes_adapters.priors import PriorLike, zero_normal
from bayes_adapters.sites import Granularity, Part, Site


class DiagonalCore(AdapterModel):
    """``h = W₀ x + (α/r) B diag(s) A x``, ``s ~ prior``, r numbers per layer.

    Start: ``Z = U diag(s₀) V`` is the singular value decomposition of a fresh Kaiming-uniform A; A = V and the guide's
    location is s₀.

    Source: ScalaBL, arXiv 2506.21408 (prior N(0, I)).

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        num_data: N, the size of the data set.
        prior: of s, see :mod:`bayes_adapters.priors`; None means N(0, 1).
        **options: further options of :class:`AdapterModel`.

    Raises:
        ConfigError: a layer has fewer inputs than ranks.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = DiagonalCore(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> [(site.name, site.shape) for site in model.sites]
    [('diagonal.global', (2, 2))]
    """

    structure: ClassVar[str] = "diagonal_core"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        num_data: int,
        prior: PriorLike | None = None,
        **options: Any,
    ) -> None:
        with restored_on_error(backbone):
            super().__init__(
                backbone,
                likelihood,
                parts=[Part.DIAGONAL],
                granularity=Granularity.GLOBAL,
                prior=zero_normal(1.0) if prior is None else prior,
                num_data=num_data,
                **options,
            )
            self._singular: dict[str, Tensor] = {}
            self._decompose()

    @torch.no_grad()
    def _decompose(self) -> None:
        for path, layer in adapted_layers(self.backbone).items():
            if layer.lora_A is None:
                continue
            require_singular_values(path, layer.rank, layer.lora_A.shape[1])
            _, self._singular[path], right = torch.linalg.svd(layer.lora_A, full_matrices=False)
            layer.lora_A.copy_(right)

    def start(self, site: Site) -> Tensor:
        return torch.stack([self._singular[path] for path in site.layers]).clone()

    def config(self) -> dict[str, Any]:
        return super().config() | {"num_data": self.num_data}
