"""What optimisers and samplers refuse of a model and its guide."""

from __future__ import annotations

from typing import Any, TypeVar

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError, positive_number, whole_number
from bayes_adapters.guides import MeanField
from bayes_adapters.guides.mean_field import ScaleParameter
from bayes_adapters.inference._draw_checks import require_global
from bayes_adapters.inference._pair_checks import require_pair

_G = TypeVar("_G")


def require_mean_field(model: Any, guide: Any) -> MeanField:
    """Return ``guide``; raise :class:`ConfigError` unless it is a Gaussian over weights by its mean and log σ."""
    require_pair(model, guide)
    if not isinstance(guide, MeanField) or guide.parameter is not ScaleParameter.LOG or guide.positive_mean:
        own = f"{type(guide).__name__}({', '.join(f'{k}={v!r}' for k, v in guide.config().items())})"
        raise ConfigError(
            f"IVON trains a Gaussian by its means and log standard deviations, MeanField(model); got {own}. Build the "
            "guide without parameter= and positive_mean=; build('blob', …, parameter='log') does so for a system."
        )
    require_global(model.sites)
    return guide


def check_rates(betas: Any, **positive: Any) -> None:
    """Raise :class:`ConfigError` unless both β lie in [0, 1) and the numbers are positive."""
    for name, value in positive.items():
        positive_number(name, value)
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ConfigError(f"betas are two numbers from 0 to below 1, such as (0.9, 0.999); got {betas!r}.")


def check_plan(steps: int, num_draws: int, burn_in: int, decay: float, cycles: int | None, explore: float) -> None:
    """Raise :class:`ConfigError` for a run that is too short for its draws."""
    for name, value in {"steps": steps, "num_draws": num_draws, "cycles": 1 if cycles is None else cycles}.items():
        whole_number(name, value)
    whole_number("burn_in", burn_in, 0)
    if not decay >= 0.0 or not 0.0 <= explore < 1.0:
        raise ConfigError(f"decay is at least 0, explore from 0 to below 1; got decay={decay}, explore={explore}.")
    if cycles is not None and (steps % cycles or num_draws % cycles):
        raise ConfigError(f"steps={steps} and num_draws={num_draws} must be multiples of cycles={cycles}.")
    left = steps - burn_in if cycles is None else steps // cycles * (1.0 - explore) * cycles
    if left < num_draws:
        raise ConfigError(
            f"{steps} steps leave {max(0, int(left))} that may be draws, and num_draws={num_draws}. Take more steps, "
            "fewer draws, or a smaller burn_in or explore."
        )


def require_chain(model: Any, guide: Any, kind: type[_G], **positive: Any) -> _G:
    """Return ``guide``; raise :class:`ConfigError` unless a chain over the weights of ``model`` can start at it."""
    require_pair(model, guide)
    for name, value in positive.items():
        positive_number(name, value)
    if positive.get("friction", 1.0) > 1.0:
        raise ConfigError(f"friction lies above 0 and is at most 1; got {positive['friction']}.")
    if not isinstance(guide, kind):
        raise ConfigError(f"The chain starts at a point, Delta(model); got a {type(guide).__name__}.")
    _require_weights(model)
    return guide


def require_whole(model: Any, data: Any, **counts: int) -> None:
    """Raise :class:`ConfigError` unless ``data`` are all the examples of ``model``, whose latents are weights."""
    for name, value in counts.items():
        whole_number(name, value)
    _require_weights(model)
    if not isinstance(data, Batch) or data.targets is None or data.size != model.num_data:
        got = (
            f"{data.size} examples, targets={data.targets is not None}" if isinstance(data, Batch) else repr(type(data))
        )
        raise ConfigError(
            f"NUTS takes one batch of all num_data={model.num_data} examples, with targets; got {got}. Langevin "
            "dynamics take batches."
        )


def _require_weights(model: Any) -> None:
    if model.head_sites or model.prior.hyper_sites or not model.sites:
        what = "no random weight" if not model.sites else "random weights in its head, or a prior with hyper-parameters"
        raise ConfigError(
            f"The {type(model).__name__} has {what}: the chain is over the adapters' weights. Run pyro.infer.MCMC on "
            "the model itself; predict takes its draws."
        )
    require_global(model.sites)
