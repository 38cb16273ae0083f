"""What is refused when an adapter is saved, and when it is built again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayes_adapters.errors import AdapterFileError, ConfigError, described
from bayes_adapters.files._checks import not_finite


def require_directory(directory: object) -> None:
    """Raise :class:`ConfigError` unless the first argument of ``save`` is a path."""
    if not isinstance(directory, str | Path):
        raise ConfigError(f"save() takes (directory, model, guide); the directory is a {type(directory).__name__}.")


def require_directory_and_backbone(directory: object, backbone: object) -> None:
    """Raise :class:`ConfigError` unless the arguments of ``load`` are a path and a module."""
    if not isinstance(directory, str | Path) or not isinstance(backbone, nn.Module):
        given = f"a {type(directory).__name__} and a {type(backbone).__name__}"
        raise ConfigError(f"load() takes (directory, backbone), a path and a torch module; got {given}.")


def require_frozen(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`ConfigError` if one of the backbone's ``parameters`` is trainable."""
    thawed = [name for name, p in parameters.items() if p.requires_grad]
    if thawed:
        raise ConfigError(
            f"{len(thawed)} weights of the backbone are trainable, for example {thawed[0]!r}, and an adapter's file "
            "does not hold them. Freeze them with requires_grad_(False), or save the whole model with torch.save."
        )


def require_own_name(what: str, name: str, found: object, thing: object) -> None:
    """Raise :class:`ConfigError` unless the class ``found`` under ``name`` is that of ``thing``."""
    if found is not type(thing):
        raise ConfigError(
            f"The {what} name {name!r} means another class than this {type(thing).__name__}. Give it a name of its own."
        )


def require_fitted(calibration: object) -> None:
    """Raise :class:`ConfigError` unless ``calibration`` is a sequence of things with a name and a ``config()``."""
    wrong = [calibration] if not isinstance(calibration, Sequence) else [one for one in calibration if not _fitted(one)]
    if wrong:
        raise ConfigError(
            "calibration must be a list of what was fitted to predictions, such as "
            f"[TemperatureScaling.fit(prediction, targets)]; got {described(wrong[0])} in it, or in its place."
        )


def require_pair_densities(densities: object) -> None:
    """Raise :class:`ConfigError` unless this is modality → fitted density, whose tensors are all finite."""
    if not isinstance(densities, Mapping):
        raise ConfigError(
            "pair_densities must be a dictionary modality → PairDensity, such as "
            f'{{"audio": PairDensity.fit(...)}}; got {described(densities)}.'
        )
    for modality, density in densities.items():
        if not isinstance(modality, str) or not isinstance(density, nn.Module) or not hasattr(density, "config"):
            raise ConfigError(
                "pair_densities must be a dictionary modality → PairDensity; got "
                f"{described(density)} under {modality!r}."
            )
        wrong = [name for name, value in density.state_dict().items() if not bool(value.isfinite().all())]
        if wrong:
            raise ConfigError(
                f"The density on pairs of {modality!r} is not fitted, or damaged: its {wrong[0]!r} is not finite. Make "
                "it with PairDensity.fit, or load its state_dict, before it is saved."
            )


def _fitted(thing: object) -> bool:
    named = isinstance(getattr(thing, "name", None), str) and callable(getattr(thing, "config", None))
    return named and not isinstance(thing, type)


def require_layers(layers: Sequence[str], saved: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless the adapted layers of the model that was built are the saved ones."""
    if layers != saved:
        raise ConfigError(f"The adapted layers would be {layers}, not the saved {saved}.")


def require_predicts(folder: Path, tensors: Mapping[str, Tensor], slots: Mapping[str, Tensor]) -> None:
    """Raise :class:`AdapterFileError` if a saved tensor holds NaN, or a parameter among ``slots`` an infinity."""
    wrong = not_finite(tensors, slots)
    if wrong:
        raise AdapterFileError(
            f"The adapter in {str(folder)!r} cannot predict: {wrong}. It was saved after training had diverged, or "
            "altered; take an earlier save, or train it again."
        )


def require_task(directory: str | Path, task: object) -> None:
    """Raise :class:`AdapterFileError` if an adapter was saved without a task."""
    if task is None:
        raise AdapterFileError(
            f"The adapter in {str(directory)!r} was saved without a task, so what it answers is unknown. Save it again "
            "with bayes_adapters.save(..., task=...)."
        )


def not_built(folder: Path, packages: Mapping[str, str], error: Exception) -> AdapterFileError:
    """Build the error for an adapter that cannot be built; ``packages`` are those it was saved with, name → version."""
    versions = ", ".join(f"{name} {number}" for name, number in packages.items())
    return AdapterFileError(
        f"The adapter in {str(folder)!r} cannot be built again: {str(error)[:1000]} It was saved with "
        f"{versions}; install the package that provides the named class, or that version of the library."
    )


def other_backbone(
    folder: Path, saved: Mapping[str, Any], given: Mapping[str, Any], differences: Sequence[str]
) -> AdapterFileError:
    """Build the error for a backbone that computes something else than the one an adapter was trained on.

    Args:
        folder: of the adapter.
        saved: description of the backbone it was trained on.
        given: description of this one.
        differences: what else differs, in words.
    """
    keys = ("class", "name_or_path", "dtype", "parameters")
    plain = [f"{key} {saved[key]!r} saved, {given[key]!r} given" for key in keys if saved[key] != given[key]]
    return AdapterFileError(
        f"The adapter in {str(folder)!r} was made for another backbone, which differs in "
        f"{'; '.join([*plain, *differences])}. "
        f"Load the one it was trained on ({saved['class']} {saved['name_or_path']!r}, {saved['dtype']}), and change "
        "none of its weights and options."
    )


def require_values(name: str, tensor: Tensor) -> None:
    """Raise :class:`ConfigError` if a tensor of the backbone is on the meta device."""
    if tensor.is_meta:
        raise ConfigError(
            f"The backbone's tensor {name!r} has no values (it is on the meta device). Load its weights first."
        )


def without_bytes(name: str, tensor: Tensor, reason: str) -> ConfigError:
    """Build the error for a tensor of the backbone of a class that does not give its bytes."""
    return ConfigError(
        f"The backbone's tensor {name!r} is a {type(tensor).__name__} whose bytes cannot be read ({reason}), so nobody "
        "could tell later whether the adapter is loaded on the same backbone. Train on a backbone that is quantised by "
        "bitsandbytes, or not at all."
    )


def too_much(where: str, what: str) -> AdapterFileError:
    """Build the error for a description whose sizes ask for ``what``, much more than was saved in ``where``."""
    return AdapterFileError(
        f"The adapter in {where!r} asks for {what} where much less was saved: a size in its description "
        "(rank, width, classes, …) is not the one of its tensors. It was altered after saving; copy the whole "
        "folder again, or save the adapter again."
    )
