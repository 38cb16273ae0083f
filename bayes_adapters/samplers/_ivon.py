"""IVON: a Gaussian over weights whose variances the optimiser finds as it estimates the curvature of the loss.

With N examples, KL weight w and λ = N / w, the loss per datum of a Gaussian ``q = N(m, diag σ²)`` is
``L = E_q ℓ(θ) + KL(q ‖ p) / λ``, ℓ the mean nll. A step of the natural gradient from one draw θ = m + σ ε, with
``ĝ = ∇ℓ(θ)`` and a prior N(m₀, 1 / (λ δ)), is::

    σ² = 1 / (λ (h + δ))
    ĥ  = ĝ (θ − m) / σ²                                                       E_q ĥ = E_q ∂²ℓ/∂θ², by Stein's lemma
    h  ← β₂ h + (1 − β₂) ĥ + ½ (1 − β₂)² (h − ĥ)² / (h + δ)                    h + δ stays positive
    g  ← β₁ g + (1 − β₁) [ĝ + δ (m − m₀)]
    m  ← m − lr · g / (1 − β₁ᵗ) / (h + δ)

Nothing but the gradient of L is needed. Let s = h + δ and ρ = log σ. Then ``∂L/∂m = ĝ + δ (m − m₀)``, and ``∂L/∂ρ =
σ ĝ ε + (σ²δ − 1/λ)``, so that ``ĥ − h = λ s ∂L/∂ρ``. With ``a = (1 − β₂) λ ∂L/∂ρ`` the update of h is::

    s ← s (1 + a + ½ a²),        that is        ρ ← ρ − ½ log(1 + a + ½ a²)

So it is written here, for any prior and any number of draws. The paper keeps the prior's part δ (m − m₀) out of the
momentum g; where g has settled the two agree.

Fixed point: ∂L/∂m = ∂L/∂ρ = 0, the best Gaussian of this form: for a quadratic loss the exact mean, and σ² = 1/Λ_ii.

Source: Shen et al. 2024, "Variational learning is effective for large deep networks", arXiv 2402.17641, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.samplers._checks import check_rates, require_mean_field
from bayes_adapters.training._optimizer import trainable

_EPS = 1e-8


class Ivon(torch.optim.Optimizer):
    """The optimiser; :func:`ivon` makes one for a model and its guide.

    Args:
        means: m, and …
        log_scales: … ρ = log σ, in the same order and of the same shapes.
        points: parameters that are points: Adam, β = (0.9, 0.999).
        weight: λ = N / w, examples per unit of the KL.
        lr: of the means; 1 is a Newton step.
        betas: β₁ and β₂.
        point_lr: of the points.

    >>> m, rho = nn.Parameter(torch.tensor([3.0])), nn.Parameter(torch.tensor([-1.0]))
    >>> optimizer = Ivon([m], [rho], [], weight=10.0, lr=0.2, betas=(0.5, 0.9))
    >>> _ = torch.manual_seed(0)
    >>> for _ in range(400):  # ℓ = ½ θ², prior N(0, 1): the posterior has the precision 10 · 1 + 1
    ...     optimizer.zero_grad()
    ...     theta = m + rho.exp() * torch.randn(64, 1)
    ...     kl = 0.5 * (m.square() + (2 * rho).exp() - 1) - rho
    ...     (0.5 * theta.square().mean() + kl.sum() / 10.0).backward()
    ...     optimizer.step()
    >>> abs(float(m.detach())) < 0.05, abs(float(rho.detach().exp()) - 11**-0.5) < 0.02
    (True, True)
    """

    def __init__(
        self,
        means: Iterable[nn.Parameter],
        log_scales: Iterable[nn.Parameter],
        points: Iterable[nn.Parameter],
        *,
        weight: float,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        point_lr: float = 1e-3,
    ) -> None:
        check_rates(betas, weight=weight, lr=lr, point_lr=point_lr)
        pairs = [parameter for pair in zip(means, log_scales, strict=True) for parameter in pair]
        groups = [{"params": pairs, "gaussian": True}, {"params": [*points], "lr": point_lr, "gaussian": False}]
        defaults = {"lr": lr, "betas": tuple(betas), "weight": float(weight)}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step by the gradients of the loss per datum; ``closure`` is not looked at."""
        for group in self.param_groups:
            parameters = group["params"]
            if group["gaussian"]:
                for mean, rho in zip(parameters[::2], parameters[1::2], strict=True):
                    self._gaussian(mean, rho, group)
            else:
                for parameter in parameters:
                    self._point(parameter, group["lr"])

    def _gaussian(self, mean: nn.Parameter, rho: nn.Parameter, group: dict[str, Any]) -> None:
        if mean.grad is None and rho.grad is None:
            return
        first, second = group["betas"]
        if rho.requires_grad and rho.grad is not None:
            a = (1.0 - second) * group["weight"] * rho.grad
            rho.sub_(0.5 * torch.log1p(a + 0.5 * a.square()))
        if mean.requires_grad and mean.grad is not None:
            state = self._state(mean, "momentum")
            state["momentum"].lerp_(mean.grad, 1.0 - first)
            precision = (-2.0 * rho).exp() / group["weight"]
            mean.sub_(group["lr"] * state["momentum"] / (1.0 - first ** int(state["step"])) / precision)

    def _point(self, parameter: nn.Parameter, lr: float) -> None:
        if parameter.grad is None:
            return
        state = self._state(parameter, "momentum", "square")
        step = int(state["step"])
        state["momentum"].lerp_(parameter.grad, 0.1)
        state["square"].lerp_(parameter.grad.square(), 1e-3)
        root = (state["square"] / (1.0 - 0.999**step)).sqrt()
        parameter.sub_(lr * state["momentum"] / (1.0 - 0.9**step) / (root + _EPS))

    def _state(self, parameter: nn.Parameter, *names: str) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state |= {"step": torch.zeros(())} | {name: torch.zeros_like(parameter) for name in names}
        state["step"] += 1
        return state


def ivon(
    model: AdapterModel,
    guide: AdapterGuide,
    *,
    kl_weight: float = 1.0,
    lr: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.999),
    point_lr: float = 1e-3,
) -> Ivon:
    """Return the optimiser for ``fit(model, guide, data, optimizer=ivon(model, guide), kl_weight=…)``.

    The guide's means and deviations are learned by IVON; everything else that is trained, the other factor, the head,
    its posterior, the likelihood, by Adam. Afterwards the guide is what it was, a
    :class:`~bayes_adapters.guides.MeanField` that is saved, loaded and predicted with. Where σ starts is the guide's
    ``init_scale``: h at the start is ``1 / (λ σ²) − δ``.

    Args:
        model: its random parts are weights: ``num_data`` is N.
        guide: ``MeanField(model)``.
        kl_weight: w, as given to ``fit``. Where they differ, or a schedule is given there, the steps are longer or
            shorter; the fixed point is that of the loss of ``fit``.
        lr: of the means, in units of a Newton step; a scheduler of ``fit`` may lower it.
        betas: of the momentum, and of the curvature: larger is smoother and slower.
        point_lr: of what is a point.

    Raises:
        ConfigError: the guide is no such Gaussian, a site is drawn per token or example, or a number is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import StochasticDown
    >>> from bayes_adapters.training import fit
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> data = Batch({"input_ids": torch.arange(16).reshape(8, 2)}, torch.tensor([0.0, 1.0] * 4))
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=8, rank=2)
    >>> guide = MeanField(model)
    >>> fit(model, guide, data, optimizer=ivon(model, guide), max_steps=3, progress=False).steps
    3
    """
    guide = require_mean_field(model, guide)
    check_rates(betas, kl_weight=kl_weight)
    own = {id(p) for p in (*guide.loc.parameters(), *guide.rho.parameters())}
    pairs = [(guide.loc[key], guide.rho[key]) for key in guide.loc]
    pairs = [pair for pair in pairs if any(p.requires_grad for p in pair)]
    points = [p for p in trainable(model, guide).values() if id(p) not in own]
    weight = float(model.num_data or 1) / kl_weight
    means, scales = [m for m, _ in pairs], [rho for _, rho in pairs]
    return Ivon(means, scales, points, weight=weight, lr=lr, betas=betas, point_lr=point_lr)
