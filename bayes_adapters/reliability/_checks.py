"""What a frame density and a reliability refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.data.contexts import module_key
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, DataError, unknown_name
from bayes_adapters.priors.hierarchical import Stacked


def check_training_contexts(groups: Any, held_out: Any, quantile: float) -> tuple[list[Tensor], list[Frames]]:
    """Return ``groups`` and ``held_out`` as lists; see ``FrameDensity.fit`` for what is allowed.

    Raises:
        ConfigError: ``quantile`` is out of range, or a tensor or Frames was given in the place of a list of them.
        DataError: no groups, a group with too few frames, frames of different widths, or too few held-out contexts.
    """
    if not 0.5 < quantile < 1:
        raise ConfigError(f"quantile is a share of held-out contexts, between 0.5 and 1; got {quantile}.")
    for name, given in (("groups", groups), ("held_out", held_out)):
        if isinstance(given, Tensor | Frames):
            wanted, kind = ("tensors (N, d)", Tensor) if name == "groups" else ("Frames", Frames)
            fix = f" Pass [{name}]." if isinstance(given, kind) else ""
            raise ConfigError(f"{name} must be a list of {wanted}; got one {type(given).__name__} alone.{fix}")
    groups, held_out = list(groups), list(held_out)
    _check_kinds(groups, held_out)
    if not groups:
        raise DataError("A frame density needs at least one group of training frames; got none.")
    widths = sorted({g.shape[-1] for g in groups} | {frames.values.shape[-1] for frames in held_out})
    if len(widths) != 1:
        raise DataError(f"All frames must have one width; got {widths}. Were they made by different encoders?")
    for k, frames in enumerate(groups):
        if len(frames) <= widths[0]:
            raise DataError(
                f"Group {k} has {len(frames)} frame{'s' * (len(frames) != 1)} of width {widths[0]}; a covariance "
                f"needs at least {widths[0] + 1} (one more than the width). Are these the frames of a few "
                "recordings only, or pooled to one per recording? Take more recordings or all their frames, join "
                "kinds of recording into one group, or do without reliability=."
            )
    far = max(quantile, 0.95)
    count, needed = sum(int(frames.present.sum()) for frames in held_out), math.ceil(round(1 / (1 - far), 6))
    if count < needed:
        raise DataError(
            f"The quantile {far:g} needs at least {needed} held-out contexts; got {count}. Hold out more examples."
        )
    return groups, held_out


def _check_kinds(groups: Sequence[Any], held_out: Sequence[Any]) -> None:
    """Raise :class:`DataError` for the first group that is no (N, d) of numbers, or context that is no Frames."""
    for k, group in enumerate(groups):
        if not isinstance(group, Tensor) or group.dim() != 2 or not group.is_floating_point():
            given = f"{group.dtype} {tuple(group.shape)}" if isinstance(group, Tensor) else f"a {type(group).__name__}"
            raise DataError(
                f"Group {k} must be a floating-point tensor (N, d), one row per frame; got {given}. Of Frames take the "
                "real ones: frames.values[frames.mask]."
            )
    for k, frames in enumerate(held_out):
        if not isinstance(frames, Frames):
            raise DataError(f"held_out[{k}] must be Frames(values, mask); got a {type(frames).__name__}.")


def check_sides(two_sided: bool | None, moments: bool, components: int, held_out: Sequence[Frames]) -> None:
    """Raise unless ``two_sided`` is left to ``moments``, and these have enough held-out contexts.

    Raises:
        ConfigError: both options are given.
        DataError: fewer than 10 contexts beyond one for each component.
    """
    if not moments:
        return
    if two_sided is not None:
        raise ConfigError(f"moments=True has both sides of everything; leave two_sided={two_sided} out.")
    count = sum(int(frames.present.sum()) for frames in held_out)
    if count < components + 10:
        raise DataError(
            f"The moments of {components} kinds of context need at least {components + 10} held-out contexts; got "
            f"{count}. Hold out more examples, or join kinds of recording into one group."
        )


def require_finite_distances(distances: Tensor) -> None:
    """Raise :class:`DataError` if a held-out context has no finite distance."""
    if not bool(distances.isfinite().all()):
        raise DataError(
            f"{int((~distances.isfinite()).sum())} of {len(distances)} held-out contexts have no finite distance: they "
            "hold NaN, infinite or huge values. Look at these recordings; silent or corrupt ones are the usual cause."
        )


def require_covariance(factor: Tensor, failed: int, group: int) -> None:
    """Raise :class:`DataError` if the covariance of a group's frames has no Cholesky factor."""
    if failed or not bool(factor.isfinite().all()):
        raise DataError(
            f"The frames of group {group} have no usable covariance: they are all alike, or hold NaN or infinite "
            "values. Look at these recordings; silent or corrupt ones are the usual cause."
        )


def require_gaussians(posterior: Any, prior: Any) -> None:
    """Raise :class:`ConfigError` unless both base distributions are Gaussian; a prior may be one for each draw."""
    priors = [base_distribution(one) for one in prior.components] if isinstance(prior, Stacked) else [prior]
    if not all(isinstance(one, torch.distributions.Normal) for one in (posterior, *priors)):
        raise ConfigError(
            f"Falling back to the prior needs Gaussians; the posterior is {type(posterior).__name__}, the prior "
            f"{type(prior).__name__}. Take a Normal prior, or build the guide without reliability=."
        )


def check_scale(scale: float | None) -> None:
    """Raise :class:`ConfigError` unless ``scale`` is a standard deviation or None."""
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if scale is not None and not (number and 0 < scale < math.inf):
        raise ConfigError(
            f"scale is a standard deviation and must be a positive, finite number, or None; got {scale!r}."
        )


def check_missing(missing: float) -> None:
    """Raise :class:`ConfigError` unless ``missing`` is a weight."""
    if isinstance(missing, bool) or not isinstance(missing, int | float) or not 0.0 <= missing <= 1.0:
        raise ConfigError(
            f"missing is γ of an absent context, from 0 (nothing is believed) to 1 (what training made of it); got "
            f"{missing!r}."
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless ``config`` has the entries that ``Reliability.config`` writes."""
    density: Any = config.get("density")
    known = config.keys() - {"missing"} == {"density", "fallback", "scale"} and isinstance(density, Mapping)
    if not known or density.keys() - {"two_sided", "moments"} != {"context_dim", "components"}:
        raise ConfigError(
            "A reliability's configuration has density (context_dim, components), fallback and scale, as "
            f"Reliability.config() returns them; got {dict(config)}. To make a new one, pass "
            "Reliability(FrameDensity.fit(...))."
        )


def require_reliability(guide: Any, modality: str | None) -> tuple[Any, str]:
    """Return the guide's reliability of a context, and which context; :class:`ConfigError` if it has none."""
    found: Any = getattr(guide, "reliability", None)
    reads = sorted(guide.reads)
    if modality is not None and modality not in reads:
        raise unknown_name("modality", modality, reads)
    several = isinstance(found, nn.ModuleDict)
    if several and modality is None:
        own = [name for name in reads if module_key(name) in found]
        if len(own) != 1:
            raise ConfigError(
                f"This {type(guide).__name__} weighs {own}, each with a scale of its own. Say which one is chosen: "
                f"modality={own[0]!r}."
            )
        modality = own[0]
    name = modality or (reads[0] if reads else "")
    found = dict(found.items()).get(module_key(name)) if several else found
    if found is None:
        raise ConfigError(
            f"This {type(guide).__name__} has no reliability whose scale could be chosen. Build it with "
            "reliability=Reliability(FrameDensity.fit(...)), and train it."
        )
    return found, name


def check_scales(scales: Iterable[float], tolerance: float) -> list[float]:
    """Return the scales in rising order; raise :class:`ConfigError` unless there are two and all are usable."""
    found = sorted({float(scale) for scale in scales})
    for scale in found:
        check_scale(scale)
    if len(found) < 2:
        raise ConfigError(f"scales must hold at least two different ones; got {found}.")
    if not 0.0 <= tolerance < math.inf:
        raise ConfigError(f"tolerance is nats above the marginal predictor, at least 0; got {tolerance}.")
    return found


def require_far(reliability: Any, modality: str, batches: Sequence[Any]) -> Tensor:
    """Return the targets of ``batches``.

    Raises:
        DataError: no batch, one without targets or with several per example, or every context is trusted.
    """
    for number, batch in enumerate(batches):
        targets = getattr(batch, "targets", None)
        if targets is None:
            raise DataError(f"Batch {number} of far contexts has no targets, which the NLL is of. Pass labelled ones.")
        if not isinstance(targets, Tensor) or targets.dim() != 1:
            given = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"the tasks {sorted(targets)}"
            raise DataError(
                f"Batch {number} of far contexts has targets of {given}. The NLL of an example is compared with that "
                "of one target: a scale is chosen for models with one target per example, shape (B,)."
            )
    if not batches:
        raise DataError("There is no batch of far contexts. Pass labelled ones, such as corrupted validation examples.")
    density = reliability.density
    device = density.limit.device
    frames = [batch.context[modality].to(device) for batch in batches if modality in batch.context]
    if reliability.missing == 1.0 and all(bool((density(f) == 1.0).all()) for f in frames):
        raise DataError(
            "Every one of these contexts is trusted fully (γ = 1), so no scale has an effect on them. Pass contexts "
            "unlike those of training, or fit the density with a lower quantile=."
        )
    return torch.cat([batch.targets for batch in batches])


def require_known(targets: Tensor, probs: Tensor | None) -> None:
    """Raise :class:`DataError` where far contexts have a class or count that the training targets give no share."""
    highest = int(targets.max()) if probs is not None else 0
    if probs is not None and highest >= len(probs):
        raise DataError(
            f"The far contexts hold the target {highest}, and the training targets go from 0 to {len(probs) - 1}: the "
            "marginal predictor, which they are compared with, gives it no probability. Pass all training targets, or "
            "leave these examples out. Are classes counted from 1?"
        )


def check_blend(prediction: Any, weight: Tensor, marginal: Any, targets: Tensor | None) -> Tensor:
    """Return the classes' shares p₀.

    Raises:
        ConfigError: the prediction is of numbers, labels, tokens or tasks, or the shares are of other classes.
        DataError: ``weight`` is no (B,) of numbers from 0 to 1, or ``targets`` are not those of the prediction.
    """
    mean = prediction.mean
    single = prediction.variance is None and not prediction.tasks and prediction.total.dim() == 1
    # probabilities of several labels do not add up to 1
    if not single or mean.dim() > 2 or (mean.dim() == 2 and bool(((mean.sum(-1) - 1).abs() > 1e-3).any())):
        raise ConfigError(
            "blend() takes predictions of one class per example, not of numbers, of several labels or of tokens. Take "
            "tasks one at a time: prediction[task]."
        )
    classes = 2 if mean.dim() == 1 else mean.shape[1]
    shares = marginal.probs
    if shares is None or len(shares) != classes:
        known = "numbers" if shares is None else f"{len(shares)} classes"
        raise ConfigError(
            f"The prediction has {classes} classes, and the marginal predictor knows {known}. Make it of the training "
            f"targets: Marginal.of(targets, num_classes={classes})."
        )
    if not isinstance(weight, Tensor):
        raise DataError(f"weight is a tensor, γ of each example; got {weight!r}. torch.full(({len(mean)},), γ) is one.")
    if targets is not None and prediction.log_density is None:
        raise DataError(
            "The prediction has no log_density to blend, for its batch had no targets. Predict with them, or leave "
            "targets= out."
        )
    if targets is not None and targets.shape != mean.shape[:1]:
        raise DataError(f"targets must be those of the {len(mean)} examples; got shape {tuple(targets.shape)}.")
    if weight.shape != mean.shape[:1] or not bool(((weight >= 0) & (weight <= 1)).all()):
        raise DataError(
            f"weight is γ of each of {len(mean)} examples, from 0 to 1; got shape {tuple(weight.shape)}, from "
            f"{float(weight.min()) if weight.numel() else math.nan:g} to "
            f"{float(weight.max()) if weight.numel() else math.nan:g}."
        )
    found: Tensor = shares
    return found


def require_density(model: Any, site: str, nodes: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless the pass whose ``nodes`` these are has recorded a density of the features."""
    if site not in nodes:
        raise ConfigError(
            f"The {type(model.head).__name__} of this {type(model).__name__} records no {site!r}: it knows no density "
            "of the features. Build the model with head=GenerativeLastLayer(), and train it."
        )
