"""``InducingWeights``: the posterior of a small matrix U, which the weights follow by the prior's conditional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions import Induced, StructuredGaussian
from bayes_adapters.errors import true_or_false
from bayes_adapters.guides._checks import require_deviation
from bayes_adapters.guides._inducing_checks import centre_and_deviation, require_sides
from bayes_adapters.inference.guide import site_key
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class InducingWeights(JointGuide):
    """``q(W) = ∫ q(W | U) q(U) dU``: an M_r × M_c matrix U is inferred, W (m × n) follows from it.

    The prior N(m₀, s² I) of W is one block of a matrix normal of W and U, whose other blocks are learned, with
    ``Ψ_r = Z_r Z_rᵀ + D_r²`` (M_r × M_r, Z_r is M_r × m) and Ψ_c alike of the columns; its conditional is::

        p(W | U) = N( m₀ + s Z_rᵀ Ψ_r⁻¹ U Ψ_c⁻¹ Z_c,  s² (I − Z_rᵀ Ψ_r⁻¹ Z_r ⊗ Z_cᵀ Ψ_c⁻¹ Z_c) )

    In whitened ``u = vec(L_r⁻¹ U L_c⁻ᵀ)``, ``L Lᵀ = Ψ``, with ``V = Z_rᵀ L_r⁻ᵀ ⊗ Z_cᵀ L_c⁻ᵀ``: p(u) = N(0, I), the
    conditional has mean ``m₀ + s V u`` and covariance ``s² (I − V Vᵀ)``. The posterior is ``q(u) = N(μ, T Tᵀ)``, dense,
    and ``q(W | u) = N(m₀ + s V u, λ² s² (I − V Vᵀ))``. Integrated over u that is a Gaussian, exactly::

        q(W) = N( m₀ + s V μ,  s² [ λ² I + V (T Tᵀ − λ² I) Vᵀ ] )

    and the loss has its closed KL from the prior of the model. It is a tighter bound than the published one, of the
    pair (W, U)::

        KL(q(W) ‖ p(W))  ≤  KL(q(u) ‖ N(0, I)) + m n (½ λ² − log λ − ½)

    With ``keep_conditional=True``, λ = 1 and q(W | u) is p(W | u): the KL is over u alone at most, and what u does not
    say of W stays as the prior has it. Else λ is learned, one per matrix. Where U is as large as W and D → 0, V is
    orthogonal and q is any Gaussian over the matrix.

    m₀ and s are the prior's mean and its standard deviation, averaged over a matrix; 0 and 0.2 where it has none that
    are finite. Under a prior that is not Gaussian q is the same family, and the KL is taken from that prior at draws.

    The mean of W has rank min(M_r, M_c) at most about m₀. It starts nearest to where the model starts.

    Source: Ritter, Kukla, Zhang and Li 2021, "Sparse uncertainty representation in deep learning with inducing
    weights", arXiv 2105.14594.

    Args:
        model: a model whose random parts are weights.
        inducing: (M_r, M_c); a side is at most as long as the matrix's. A vector is one column, M_c = 1.
        init_scale: standard deviation of the entries of W in the directions of U at the start, and in the others where
            λ is learned; at most s.
        keep_conditional: λ = 1, fixed.

    Raises:
        ConfigError: an option is out of range, or ``keep_conditional`` under a prior without a finite standard
            deviation.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> guide = InducingWeights(model, inducing=(2, 3))  # A, shape (2, 8), in two layers
    >>> {name: tuple(value.shape) for name, value in guide.named_parameters() if "A-global" in name and value.dim() > 2}
    {'rows.A-global': (2, 2, 2), 'columns.A-global': (2, 3, 8), 'lower.A-global': (2, 6, 6)}
    """

    name: ClassVar[str] = "inducing_weights"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL

    def __init__(
        self,
        model: AdapterModel,
        *,
        inducing: Sequence[int] = (4, 8),
        init_scale: float = 0.1,
        keep_conditional: bool = False,
    ) -> None:
        super().__init__(model)
        self.inducing = require_sides(inducing)
        require_deviation(init_scale)
        true_or_false("keep_conditional", keep_conditional)
        self.init_scale, self.keep_conditional = init_scale, keep_conditional
        self.rows, self.columns = nn.ParameterDict(), nn.ParameterDict()
        """Z_r, shape (L, M_r, m), and Z_c, shape (L, M_c, n); their rows are orthonormal at the start."""
        self.log_rows, self.log_columns = nn.ParameterDict(), nn.ParameterDict()
        """Logs of D_r, shape (L, M_r), and of D_c, shape (L, M_c)."""
        self.loc, self.log_scale, self.lower = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        """μ and log T_ii, shape (L, M_r · M_c), and T below its diagonal in units of T_ii."""
        self.log_conditional = nn.ParameterDict()
        """Log λ, shape (L,)."""
        for site in model.sites:
            key = site_key(site)
            start = model.start(site).to(torch.get_default_dtype())  # whatever the model was cast to
            layers, m = len(site.layers), site.event[0]
            known = centre_and_deviation(model.prior.of(site), site, keep_conditional)
            centre, deviation = (each.to(start) for each in known)
            centre, scale = centre.reshape(layers, m, -1), deviation.reshape(layers, -1).mean(1)
            self.register_buffer(f"centre_{key}", centre.clone(), persistent=False)
            self.register_buffer(f"scale_{key}", scale.clone(), persistent=False)
            a, b = min(self.inducing[0], m), min(self.inducing[1], centre.shape[-1])
            for sides, logs, count, length in (
                (self.rows, self.log_rows, a, m),
                (self.columns, self.log_columns, b, centre.shape[-1]),
            ):
                made = [nn.init.orthogonal_(torch.empty(count, length)) for _ in range(layers)]
                sides[key] = nn.Parameter(torch.stack(made).to(start))
                logs[key] = nn.Parameter(start.new_full((layers, count), math.log(0.1)))
            relative = (init_scale / scale).clamp_max(1.0).log()
            self.log_scale[key] = nn.Parameter(relative[:, None].repeat(1, a * b))
            self.lower[key] = nn.Parameter(start.new_zeros(layers, a * b, a * b))
            if not keep_conditional:
                self.log_conditional[key] = nn.Parameter(relative.clone())
            rows, columns = (_loadings(*side) for side in self._sides(key))
            nearest = torch.linalg.pinv(rows) @ (start.reshape(centre.shape) - centre) @ torch.linalg.pinv(columns).mT
            self.loc[key] = nn.Parameter((nearest.flatten(1) / scale[:, None]).detach())

    def joint(self) -> TorchDistributionMixin:
        means, roots = [], []
        for key in self.loc:
            scale = self.get_buffer(f"scale_{key}")
            rows, columns = (_loadings(*side) for side in self._sides(key))
            u = self.loc[key].unflatten(-1, (rows.shape[-1], columns.shape[-1]))
            means.append((self.get_buffer(f"centre_{key}") + scale[:, None, None] * (rows @ u @ columns.mT)).flatten())
            (rows, within), (columns, beside) = torch.linalg.qr(rows), torch.linalg.qr(columns)
            within = _kron(within, beside)  # V = Q H, H = H_r ⊗ H_c
            eye = torch.eye(within.shape[-1]).to(within)
            tril = self.log_scale[key].exp()[..., None] * (self.lower[key].tril(-1) + eye)
            squared = self._conditional(key).square()[:, None, None]
            inner = squared * (eye - within @ within.mT) + (within @ tril) @ (within @ tril).mT
            inner = scale[:, None, None] * torch.linalg.cholesky(inner)
            roots.append(Induced(rows, columns, inner, scale * self._conditional(key)))
        return StructuredGaussian(torch.cat(means), roots, validate_args=False)

    def config(self) -> dict[str, Any]:
        names = ("inducing", "init_scale", "keep_conditional")
        return {name: list(value) if name == "inducing" else value for name in names for value in [getattr(self, name)]}

    def _sides(self, key: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.rows[key], self.log_rows[key]), (self.columns[key], self.log_columns[key])

    def _conditional(self, key: str) -> Float[Tensor, " L"]:
        """λ."""
        if self.keep_conditional:
            return torch.ones_like(self.get_buffer(f"scale_{key}"))
        return self.log_conditional[key].exp()


def _loadings(side: Float[Tensor, "L a m"], log_deviation: Float[Tensor, "L a"]) -> Float[Tensor, "L m a"]:
    """Return ``Zᵀ L⁻ᵀ`` with ``L Lᵀ = Z Zᵀ + D²``."""
    root = torch.linalg.cholesky(side @ side.mT + torch.diag_embed((2.0 * log_deviation).exp()))
    return torch.linalg.solve_triangular(root, side, upper=False).mT


def _kron(one: Float[Tensor, "L a a"], other: Float[Tensor, "L b b"]) -> Float[Tensor, "L c c"]:
    whole = one[:, :, None, :, None] * other[:, None, :, None, :]
    return whole.flatten(1, 2).flatten(2, 3)
