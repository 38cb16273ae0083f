"""``MatrixNormal``: a Gaussian over matrices whose rows correlate, and whose columns do."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.errors import whole_number
from bayes_adapters.gaussians import RowsAndColumns, StructuredGaussian
from bayes_adapters.guides._checks import require_deviation
from bayes_adapters.inference.guide import site_key
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class MatrixNormal(JointGuide):
    """``q(X) = MN(M, U, V)`` per site and layer: ``X = M + R ε Cᵀ``, ``U = R Rᵀ`` over rows, ``V = C Cᵀ`` over columns.

    ``Cov(X_ij, X_i'j') = U_ii' V_jj'``, that is N(vec M, U ⊗ V) with entries in the order of rows. For an m × n matrix
    it keeps m² + n² numbers besides M where a dense covariance keeps (m n)². Exact from independent Gaussian priors
    N(0, s²)::

        KL = ½ [ tr(U) tr(V) / s² + ‖M‖² / s² − m n + 2 m n log s ] − n Σ_i log R_ii − m Σ_j log C_jj

    ``R = diag(σ) R'``, ``C = diag(τ) C'`` with unit lower triangular R' and C'; τ starts at 1. A side longer than
    ``dense_up_to`` is diagonal: of A, shape (r, d_in), the r ranks then correlate and the d_in inputs have a variance
    each. A vector, such as the diagonal of a core, is one column; of more than two axes the first are the rows.

    Source: Louizos and Welling 2016, "Structured and efficient variational deep learning with matrix Gaussian
    posteriors", arXiv 1603.04733.

    Args:
        model: a model whose random parts are weights.
        init_scale: the standard deviation of every entry at the start, where nothing correlates.
        dense_up_to: the longest side that has a dense covariance; 0 makes both sides diagonal.

    Raises:
        ConfigError: an option is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> guide = MatrixNormal(model, dense_up_to=4)  # A, shape (2, 8), in two layers
    >>> {name: tuple(value.shape) for name, value in guide.named_parameters() if name != "loc"}
    {'log_rows.A-global': (2, 2), 'log_columns.A-global': (2, 8), 'rows.A-global': (2, 2, 2)}
    """

    name: ClassVar[str] = "matrix_normal"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL

    def __init__(self, model: AdapterModel, *, init_scale: float = 0.1, dense_up_to: int = 64) -> None:
        super().__init__(model)
        require_deviation(init_scale)
        whole_number("dense_up_to", dense_up_to, 0)
        self.init_scale, self.dense_up_to = init_scale, dense_up_to
        start = self.start()
        self.loc = nn.Parameter(start)
        self.log_rows, self.log_columns = nn.ParameterDict(), nn.ParameterDict()
        """Logs of σ, shape (L, m), and of τ, shape (L, n)."""
        self.rows, self.columns = nn.ParameterDict(), nn.ParameterDict()
        """R' and C' below their diagonals, of the sides that are dense."""
        for site in model.sites:
            key, layers, m = site_key(site), len(site.layers), site.event[0]
            n = math.prod(site.event[1:])
            self.log_rows[key] = nn.Parameter(start.new_full((layers, m), math.log(init_scale)))
            self.log_columns[key] = nn.Parameter(start.new_zeros(layers, n))
            for sides, length in ((self.rows, m), (self.columns, n)):
                if 1 < length <= dense_up_to:
                    sides[key] = nn.Parameter(start.new_zeros(layers, length, length))

    def joint(self) -> TorchDistributionMixin:
        roots = []
        for key in self.log_rows:
            rows = _side(self.log_rows[key], self.rows.get(key, None))
            columns = _side(self.log_columns[key], self.columns.get(key, None))
            roots.append(RowsAndColumns(rows, columns))
        return StructuredGaussian(self.loc, roots, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"init_scale": self.init_scale, "dense_up_to": self.dense_up_to}


def _side(log_scale: Tensor, lower: Tensor | None) -> Tensor:
    """A side's square root, shape (L, m, m), or (L, m) where it is diagonal."""
    scale = log_scale.exp()
    if lower is None:
        return scale
    return scale[..., None] * (lower.tril(-1) + torch.eye(lower.shape[-1]).to(lower))
