"""Stochastic-gradient Langevin and Hamiltonian dynamics over the weights of an adapter, once or in cycles.

The energy is ``U(w) = −log p(w) − Σ_n log p(y_n | x_n, w) = N · L(w)``, L the loss per datum of a point w. A step of
size η, friction α and temperature τ, with ∇U estimated from a batch, is::

    v ← (1 − α) v − η ∇U(w) + √(2 α η τ) · ξ,    ξ ~ N(0, I)
    w ← w + v

α = 1 is SGLD with steps ε = 2 η. As η → 0 the w of a long run are draws of ``p(w | data)^(1/τ)``, normalised; at
a finite η they are too wide, by what the noise of the batches adds and by an error of order η. Step sizes::

    decreasing   η_k = η (1 + k / b)^(−γ),  b the burn-in
    cyclical     η_k = ½ η (1 + cos(π r)),  r from 0 to 1 within each of M cycles, ξ = 0 while r < explore

Sources: Welling and Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics" (ICML); Chen, Fox and
Guestrin 2014, arXiv 1402.4102; Zhang et al. 2020, arXiv 1902.03932.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import generators_kept
from bayes_adapters.guides import Delta, StoredDraws
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.samplers._checks import check_plan, require_chain
from bayes_adapters.training import fit


@dataclass(frozen=True)
class Plan:
    """How large the steps of a run are, which are noisy, and after which a draw is kept; steps count from 1.

    Args:
        steps: K, of the whole run.
        num_draws: S.
        burn_in: steps before the first draw, b; without effect in cycles.
        decay: γ.
        cycles: M; None is one run of decreasing steps.
        explore: share of each cycle without noise and draws.

    >>> plan = Plan(steps=10, num_draws=4, burn_in=2)
    >>> [step for step in range(1, 11) if plan.keeps(step)]
    [4, 6, 8, 10]
    >>> [step for step in range(1, 11) if Plan(steps=10, num_draws=4, cycles=2, explore=0.6).keeps(step)]
    [4, 5, 9, 10]
    """

    steps: int
    num_draws: int
    burn_in: int = 0
    decay: float = 0.0
    cycles: int | None = None
    explore: float = 0.5

    def __post_init__(self) -> None:
        check_plan(self.steps, self.num_draws, self.burn_in, self.decay, self.cycles, self.explore)

    def factor(self, step: int) -> float:
        """Return η_k / η."""
        if self.cycles is None:
            return float((1.0 + (step - 1) / max(1, self.burn_in)) ** -self.decay)
        return 0.5 * (1.0 + math.cos(math.pi * self._place(step)))

    def noisy(self, step: int) -> bool:
        """Whether ξ is drawn."""
        return self.cycles is None or self._place(step) >= self.explore

    def keeps(self, step: int) -> bool:
        """Whether w after this step is a draw: evenly over what follows the burn-in, or the exploration of a cycle."""
        length, own = (self.steps, self.num_draws) if self.cycles is None else self._share()
        within = step if self.cycles is None else (step - 1) % length + 1
        before = self.burn_in if self.cycles is None else math.ceil(self.explore * length)
        at = within - before
        return at > 0 and (at * own) // (length - before) > ((at - 1) * own) // (length - before)

    def _share(self) -> tuple[int, int]:
        assert self.cycles is not None
        return self.steps // self.cycles, self.num_draws // self.cycles

    def _place(self, step: int) -> float:
        length = self._share()[0]
        return ((step - 1) % length) / length


class Langevin(torch.optim.Optimizer):
    """The dynamics as an optimiser: its gradients are those of L, the loss per datum; see this module.

    Args:
        parameters: w.
        num_data: N.
        lr: η, squared units of w.
        plan: sizes of the steps.
        friction: α in (0, 1].
        temperature: τ.

    >>> w = nn.Parameter(torch.zeros(2000))  # 2000 chains: U = ½ w² / 0.25, with N = 10
    >>> _ = torch.manual_seed(0)
    >>> optimizer = Langevin([w], num_data=10, lr=0.01, plan=Plan(steps=150, num_draws=1), friction=0.3)
    >>> for _ in range(150):
    ...     optimizer.zero_grad()
    ...     (0.5 * w.square().sum() / 0.25 / 10).backward()
    ...     optimizer.step()
    >>> abs(float(w.detach().var()) - 0.25) < 0.03
    True
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        num_data: int,
        lr: float,
        plan: Plan,
        friction: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "num_data": num_data, "plan": repr(plan), "friction": friction}
        super().__init__(parameters, defaults | {"temperature": temperature})
        self.plan = plan

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step; ``closure`` is not looked at."""
        for group in self.param_groups:
            alpha, tau = group["friction"], group["temperature"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"step": torch.zeros(()), "velocity": torch.zeros_like(parameter)}
                state["step"] += 1
                number, velocity = int(state["step"]), state["velocity"]
                size = group["lr"] * self.plan.factor(number)
                velocity.mul_(1.0 - alpha).sub_(size * group["num_data"] * parameter.grad)
                if self.plan.noisy(number):
                    velocity.add_(torch.randn_like(parameter), alpha=math.sqrt(2.0 * alpha * size * tau))
                parameter.add_(velocity)


class Collector:
    """Keeps draws of a run, as ``fit(…, on_step=)``; a run that was interrupted goes on with those that it had.

    Args:
        plan: says which steps.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.draws: list[dict[str, Tensor]] = []

    def __call__(self, step: int, model: AdapterModel, guide: Delta, optimizer: torch.optim.Optimizer) -> None:
        if self.plan.keeps(step):
            self.draws.append({s.name: guide.loc[site_key(s)].detach().clone() for s in model.sites})

    def state_dict(self) -> dict[str, Any]:
        """Return the draws so far."""
        return {"draws": self.draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over draws."""
        self.draws = list(state["draws"])


def langevin(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Iterable[Batch] | Batch,
    *,
    steps: int,
    lr: float,
    num_draws: int = 32,
    burn_in: int | None = None,
    decay: float = 0.0,
    friction: float = 1.0,
    cycles: int | None = None,
    explore: float = 0.5,
    temperature: float = 1.0,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> StoredDraws:
    """Draw the random weights of ``model`` from their posterior by SGLD, SGHMC, or either in cycles.

    Everything that is no random weight, the other factor, the head, the likelihood, is taken as it is and stays so:
    train it first, as ``fit(model, Delta(model), data)`` does, and start from there. ``data`` are read by ``fit``, so
    that draws are a function of ``seed`` and the batches, and an interrupted run goes on from its checkpoint. Dropout,
    where the model has any, is on: build it without.

    Args:
        model: its random parts are weights: ``num_data`` is N. The prior is its own.
        guide: ``Delta(model)``: where the chain starts. It is as before afterwards, also when the run was interrupted.
        data: as for ``fit``; one batch of all examples has no noise of batches.
        steps: K.
        lr: η, squared units of the weights: below the squared standard deviation of the narrowest direction.
        num_draws: S, spread evenly over the steps that keep any.
        burn_in: steps before the first draw; None is half of them.
        decay: γ, 0 for steps of one size, ⅓ for those that decrease as far as is best for means.
        friction: α; 1 is SGLD, 0.1 is usual for SGHMC.
        cycles: M; S is a multiple of it.
        explore: share of each cycle that only looks for another mode.
        temperature: τ; 1 is the posterior.
        seed: of the noise.
        checkpoint: a folder, see ``fit``.
        progress: see ``fit``.

    Returns:
        A guide that holds the draws, for ``predict``, ``save`` and ``analysis.arviz.to_arviz``.

    Raises:
        ConfigError: the guide is no ``Delta``, a site is drawn per token, the head has random weights of its own, or a
            number is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli, predict
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> batch = Batch({"input_ids": torch.arange(16).reshape(8, 2)}, torch.tensor([0.0, 1.0] * 4))
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=8, rank=2)
    >>> draws = langevin(model, Delta(model), batch, steps=20, lr=1e-3, num_draws=5)
    >>> predict(model, draws, batch, num_samples=5).num_samples
    5
    """
    burn_in = steps // 2 if burn_in is None else burn_in
    plan = Plan(steps, num_draws, burn_in, decay, cycles, explore)
    point = require_chain(model, guide, Delta, lr=lr, friction=friction, temperature=temperature)
    with generators_kept(model):
        StoredDraws(model)  # what it could not hold is refused before there is anything to hold
    start = {name: p.detach().clone() for name, p in point.loc.items()}
    collector, places = Collector(plan), list(point.loc.parameters())
    size = int(model.num_data or 1)
    options: dict[str, Any] = {"recipe": None, "kl_weight": 1.0, "monitor": None, "max_steps": steps}
    options |= {"seed": seed, "checkpoint": checkpoint, "progress": progress}
    try:
        with _only(places, model, point):
            optimizer = Langevin(places, num_data=size, lr=lr, plan=plan, friction=friction, temperature=temperature)
            fit(model, point, data, optimizer=optimizer, on_step=collector, **options)
    finally:  # also of a run that was interrupted: what goes on from its checkpoint starts with the same guide
        with torch.no_grad():
            for name, value in start.items():
                point.loc[name].copy_(value)
    samples = {site.name: torch.stack([draw[site.name] for draw in collector.draws]) for site in model.sites}
    return StoredDraws.of(model, samples)


@contextmanager
def _only(places: Iterable[nn.Parameter], *modules: nn.Module) -> Iterator[None]:
    """Within the context ``places`` are the only parameters of the modules that are trained."""
    own = set(map(id, places))
    before = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in own)
    try:
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
