"""PoLAR: a random core between learned factors with orthonormal directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.adapters.linear import AdaptedLinear, Times
from bayes_adapters.adapters.linear_layers import linear_size
from bayes_adapters.models._factor_checks import require_directions
from bayes_adapters.models._small_core import SmallCore
from bayes_adapters.sites import Part


class OrthonormalLinear(AdaptedLinear):
    """``h = W₀ x + (α/r) X E Yᵀ x``, ``XᵀX = YᵀY = I``: :func:`orthonormal` of two free parameters.

    ``lora_A`` (r, d_in) and ``lora_B`` (d_out, r) are the free ones; they start with orthonormal directions.
    """

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, **options: Any) -> None:
        super().__init__(base_layer, rank, alpha, **options)
        require_directions(self.path, self.rank, *linear_size(base_layer))

    def initial(self, part: Part, shape: tuple[int, ...]) -> Tensor:
        return nn.init.orthogonal_(torch.empty(shape)) if min(shape) else torch.empty(shape)

    def update(self, x: Float[Tensor, "rows *T d_in"], times: Times) -> Float[Tensor, "rows *T d_out"]:
        down, up = self.directions()
        z = F.linear(x.to(down.dtype), down)
        return F.linear(times(Part.CORE, z), up)

    def as_lora(self, values: Mapping[Part, Tensor]) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        down, up = self.directions()
        return values[Part.CORE] @ down, up

    def directions(self) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
        """Return Yᵀ and X, as they are now."""
        return orthonormal(self.get_parameter("lora_A")), orthonormal(self.get_parameter("lora_B").mT).mT


def orthonormal(rows: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Return ``L⁻¹ M`` with ``M Mᵀ = L Lᵀ``: orthonormal rows that span the same space as those of M.

    It is smooth where M has full rank, and the identity where M's rows are orthonormal already. Scaling M, or any row
    of it, changes nothing. The factorisation is in float32 whatever the dtype of M.

    >>> orthonormal(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    wide = rows.float()
    lower = torch.linalg.cholesky(wide @ wide.mT)
    return torch.linalg.solve_triangular(lower, wide, upper=False).to(rows.dtype)


def stable_rank(core: Float[Tensor, "*batch r r"]) -> Float[Tensor, "*batch"]:
    """Return ``‖E‖_F² / ‖E‖₂²``, between 1 and r: how many directions the update uses, weighted by their size.

    Between orthonormal factors it is that of the whole update X E Yᵀ.

    >>> stable_rank(torch.eye(3)), stable_rank(torch.diag(torch.tensor([1.0, 0.1])))
    (tensor(3.), tensor(1.0100))
    """
    singular = torch.linalg.svdvals(core)
    return singular.square().sum(-1) / singular[..., 0].square()


class PoLAR(SmallCore):
    """``h = W₀ x + (α/r) X E Yᵀ x``, ``E ~ prior``, X and Y learned with orthonormal columns.

    The core alone has a size, so its singular values are those of the whole update: LoRA's factors can scale each other
    and tend to updates of few directions; here none can. :meth:`stable_ranks` says how many directions are used.

    The paper keeps X and Y near the Stiefel manifold by an optimiser of its own (a landing field). Here they are on it
    in every step and under every optimiser: X and Y are :func:`orthonormal` of free parameters, at the cost of a
    Cholesky factor of r × r per layer and pass. X and Y start at random, E at N(0, 10⁻⁶), and a guide's locations with
    it: the model is nearly the frozen backbone.

    Source: Lion et al. 2025, "PoLAR: Polar-decomposed low-rank adapter representation", arXiv 2506.03133.

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        granularity: ``"global"`` (then pass ``num_data``), ``"sequence"`` or ``"token"``.
        prior: of E, see :mod:`bayes_adapters.priors`; None means N(0, 0.2²).
        **options: further options of :class:`bayes_adapters.AdapterModel`.

    Raises:
        ConfigError: a layer has fewer inputs or outputs than ranks.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> model = PoLAR(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> down, up = next(iter(model.installed.values())).directions()
    >>> torch.allclose(up.T @ up, torch.eye(2), atol=1e-6), torch.allclose(down @ down.T, torch.eye(2), atol=1e-6)
    (True, True)
    """

    structure: ClassVar[str] = "polar"
    layer: ClassVar[type[AdaptedLinear]] = OrthonormalLinear
    start_scale: ClassVar[float] = 1e-3

    def measures(self, draws: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ``"stable_rank"``, the mean of :func:`stable_rank` over layers (and tokens) of the cores drawn."""
        cores = [draws[site.name] for site in self.sites if site.part == Part.CORE and site.rank]
        ranks = [stable_rank(core.float()).flatten() for core in cores]
        return {"stable_rank": float(torch.cat(ranks).mean())} if ranks else {}

    def stable_ranks(self, draws: Mapping[str, Tensor]) -> dict[str, float]:
        """Return path → :func:`stable_rank` of a layer's core.

        Args:
            draws: site → core, shape ``site.shape``, such as ``weight_draw(model, guide, 0)`` returns.
        """
        found = {}
        for site in self.sites:
            cores = draws[site.name].reshape(len(site.layers), *site.event) if site.part == Part.CORE else ()
            found.update({path: float(stable_rank(core)) for path, core in zip(site.layers, cores, strict=False)})
        return {path: found[path] for path in adapted_layers(self.backbone) if path in found}
