"""Saved adapters: a folder with ``adapter.safetensors`` (every tensor) and ``adapter.json`` (how to build them again).

The frozen backbone is not saved; its fingerprint is, and :func:`load` refuses any other. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from bayes_adapters import priors, registry
from bayes_adapters.adapters._checks import require_unmerged
from bayes_adapters.adapters.installation import adapted_layers, require_unadapted, restored_on_error
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.devices import generators_kept
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files._adapter_checks import (
    not_built,
    require_directory,
    require_directory_and_backbone,
    require_fitted,
    require_frozen,
    require_layers,
    require_own_name,
    require_predicts,
    require_task,
)
from bayes_adapters.files._backbone import base_parameters, describe_base, require_base
from bayes_adapters.files._backbone import fingerprint as fingerprint
from bayes_adapters.files._budget import Budget
from bayes_adapters.files._checks import (
    FORMAT,
    entries_of,
    kind,
    kinds,
    require_finite,
    require_same,
    version_of,
)
from bayes_adapters.files._folder import WEIGHTS, read_adapter, require_free, to_json, verified, write
from bayes_adapters.files._folder import describe as describe
from bayes_adapters.files._pair_densities import FittedPairs, described, without
from bayes_adapters.files._regular import as_folder, readable
from bayes_adapters.files._wrappers import unwrapped
from bayes_adapters.files.marks import Marks, has_fresh_head
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.tempering import temperature_of
from bayes_adapters.likelihoods import Likelihood


@runtime_checkable
class Fitted(Protocol):
    """What was fitted to predictions after training, such as a temperature: its name, and its numbers as JSON."""

    name: ClassVar[str]

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        ...


def save(
    directory: str | Path,
    model: AdapterModel,
    guide: AdapterGuide,
    *,
    task: Mapping[str, Any] | None = None,
    calibration: Sequence[Fitted] = (),
    pair_densities: Mapping[str, FittedPairs] = MappingProxyType({}),
) -> None:
    """Write the adapter, without its frozen backbone, to ``directory``; each file appears whole or not at all.

    Args:
        directory: made when absent. An adapter saved there before is replaced; a folder of other things is refused.
        model: its adapters, head, likelihood and buffers are saved in the dtype they have; what is frozen stays so.
        guide: the guide made for it, with its ``posterior_temperature``.
        task: anything JSON; :func:`load_task` returns it.
        calibration: what was fitted to the model's predictions, in the order in which it is applied;
            :func:`bayes_adapters.analysis.saved.load_calibration` returns it.
        pair_densities: modality → what says whether such a context belongs to its input, a
            :class:`bayes_adapters.reliability.PairDensity`;
            :func:`bayes_adapters.reliability.load_pair_densities` returns it.

    Raises:
        ConfigError: the guide belongs to another model; a class is not registered under its name; a backbone weight is
            trainable (only the adapter is saved); an option or ``task`` is not JSON; ``calibration`` is no sequence of
            fitted things, or ``pair_densities`` no dictionary of fitted densities.
        NonFiniteError: a parameter holds NaN or an infinity, or a buffer NaN.
        AdapterFileError: ``directory`` is a file, holds other things, or cannot be written.
    """
    require_directory(directory)
    folder = as_folder(directory)
    if not isinstance(model, nn.Module):
        require_pair(model, guide)  # says what is wrong
    with unwrapped(model):
        require_pair(model, guide)
        _save(folder, model, guide, task, calibration, pair_densities)


def _save(
    folder: Path,
    model: AdapterModel,
    guide: AdapterGuide,
    task: Mapping[str, Any] | None,
    calibration: Sequence[Fitted],
    pair_densities: Mapping[str, FittedPairs],
) -> None:
    require_fitted(calibration)
    require_unmerged(adapted_layers(model.backbone), "saved")
    require_frozen(base_parameters(model.backbone))
    for part in model.likelihood.modules():
        if isinstance(part, Likelihood):  # the tasks of a likelihood of several are looked up again too
            _entry("likelihood", part, "name")
    with readable(folder):
        require_free(folder)
    own = own_tensors(model, guide)
    require_finite(own)
    densities, surplus = described(pair_densities)
    tensors = {name: _dense(tensor) for name, tensor in (own | surplus).items()}
    data = tensors_to_bytes(tensors)
    packages = ("bayes-adapters", "torch", "pyro-ppl", "transformers")
    description = {
        "format": FORMAT,
        "format_version": 1,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "model": _entry("model", model, "structure") | {"prior_dtype": _prior_dtype(model)},
        "likelihood": _entry("likelihood", model.likelihood, "name"),
        "prior": model.prior.to_json(registry.find),
        "guide": _entry("guide", guide, "name") | _temperature(guide),
        "num_data": model.num_data,
        "base": describe_base(model.backbone),
        "weights": {
            "sha256": hashlib.sha256(data).hexdigest(),
            "tensors": {name: kind(tensor) for name, tensor in tensors.items()},
        },
        "task": None if task is None else dict(task),
    } | Marks.of(model).to_json(fresh=has_fresh_head(model))
    if frozen := [name for name, p in own.items() if isinstance(p, nn.Parameter) and not p.requires_grad]:
        description["frozen"] = frozen
    if calibration:
        description["calibration"] = [{"name": one.name, "config": one.config()} for one in calibration]
    if densities:
        description["pair_densities"] = densities
    if not model.own_head:
        description["head"] = _entry("head", model.head, "name")
    description["format_version"] = version_of(description)
    write(folder, data, to_json(description))


def load(directory: str | Path, backbone: nn.Module) -> tuple[AdapterModel, AdapterGuide]:
    """Build the saved model and guide on ``backbone``, in eval mode and on its device; needs no data and no step.

    Args:
        directory: what :func:`save` wrote.
        backbone: the same frozen backbone, without adapters. If loading fails it is left as it was given.

    Returns:
        ``(model, guide)``, whose predictions equal the saved ones'.

    Raises:
        AdapterFileError: something is missing, surplus, altered, newer than this library, or made for another backbone;
            the message lists what and says what to do.
        ConfigError: the backbone already has adapters.
    """
    require_directory_and_backbone(directory, backbone)
    folder = as_folder(directory)
    about, tensors = read_adapter(folder)
    with unwrapped(backbone) as plain:
        require_unadapted(plain)
        require_base(folder, about, plain)
        try:
            with restored_on_error(plain):
                entries = {name: entries_of(kind) for name, kind in about["weights"]["tensors"].items()}
                # initial values are drawn and then overwritten
                with generators_kept(plain), Budget(entries, plain, str(folder)):
                    model, guide = _build(about, plain)
                _assign(folder, own_tensors(model, guide), without(about, tensors))
                _restore_flags(model, guide, about)
                Marks.from_json(about).put_on(model)
        except AdapterFileError:
            raise
        except Exception as error:
            raise not_built(folder, about["versions"], error) from error
        if plain is not backbone:
            model.backbone = backbone  # in its wrapper, as it was given
    return model.eval(), guide.eval()


def load_task(directory: str | Path) -> dict[str, Any]:
    """Return the ``task`` that was given to :func:`save`.

    Raises:
        AdapterFileError: the folder holds no readable adapter, or one that was saved without a task.
    """
    task = verified(directory)["task"]
    require_task(directory, task)
    return dict(task)


def own_tensors(model: AdapterModel, guide: AdapterGuide) -> dict[str, Tensor]:
    """Every parameter and persistent buffer of model and guide that is not the frozen backbone's."""
    prefixes = [f"backbone.{path}." for path in adapted_layers(model.backbone)]

    def own(name: str) -> bool:
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        return not name.startswith("backbone.") if prefix is None else not name.startswith(f"{prefix}base_layer.")

    # keep_vars: the parameters themselves, which _assign writes to
    found = {f"model.{name}": value for name, value in model.state_dict(keep_vars=True).items() if own(name)}
    return found | {f"guide.{name}": value for name, value in guide.state_dict(keep_vars=True).items()}


def _entry(what: str, thing: Any, attribute: str) -> dict[str, Any]:
    name = registry.name_of(what, type(thing))
    require_own_name(what, name, registry.find(what, name), thing)
    return {attribute: name, "config": thing.config()}


def _temperature(guide: AdapterGuide) -> dict[str, float]:
    """Return τ as an entry of the guide's section, where it is not 1."""
    tau = temperature_of(guide)
    return {} if tau == 1.0 else {"posterior_temperature": tau}


def _prior_dtype(model: AdapterModel) -> str | None:
    floats = (b.dtype for b in model.prior.buffers() if b.is_floating_point())
    return next((str(dtype).removeprefix("torch.") for dtype in floats), None)


def _build(about: Mapping[str, Any], backbone: nn.Module) -> tuple[AdapterModel, AdapterGuide]:
    make_model: Callable[..., AdapterModel] = registry.find("model", about["model"]["structure"])
    make_guide: Callable[..., AdapterGuide] = registry.find("guide", about["guide"]["name"])
    make_likelihood: type[Likelihood] = registry.find("likelihood", about["likelihood"]["name"])
    likelihood = make_likelihood.from_config(about["likelihood"]["config"], partial(registry.find, "likelihood"))
    options = dict(about["model"]["config"])
    paths = options.pop("targets")
    # One pattern of whole paths: as suffixes, "proj" would match "block.proj" too.
    options["targets"] = Targets("|".join(re.escape(path) for path in paths)) if paths else None
    if "head" in about:
        options["head"] = registry.find("head", about["head"]["name"])(**about["head"]["config"])
    if about["prior"]:
        options["prior"] = priors.from_json(about["prior"], registry.find)
    model = make_model(backbone, likelihood, **options)
    model.num_data = about["num_data"]  # that of a model without global sites is none of its options
    require_layers(model.layers, paths)
    if about["model"]["prior_dtype"] is not None:
        model.prior.to(getattr(torch, about["model"]["prior_dtype"]))
    guide = make_guide(model, **about["guide"]["config"])
    guide.posterior_temperature = float(about["guide"].get("posterior_temperature", 1.0))
    return model, guide.to(next(backbone.parameters()).device)


def _assign(folder: Path, slots: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Put the saved tensors in place, in the dtype they were saved in."""
    require_same(folder / WEIGHTS, "needed", kinds(slots), kinds(tensors))
    require_predicts(folder, tensors, slots)
    for name, slot in slots.items():
        slot.data = tensors[name].to(slot.device)


def _restore_flags(model: AdapterModel, guide: AdapterGuide, about: Mapping[str, Any]) -> None:
    """Freeze what was frozen when it was saved; older files do not say it."""
    if "frozen" not in about:
        return
    frozen = set(about["frozen"])
    for name, slot in own_tensors(model, guide).items():
        if isinstance(slot, nn.Parameter):
            slot.requires_grad_(name not in frozen)


def _dense(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU; of a tensor that is spread over processes, all of it."""
    gather = getattr(tensor, "full_tensor", None)
    whole = gather() if callable(gather) else tensor
    return whole.detach().cpu().contiguous().clone()
