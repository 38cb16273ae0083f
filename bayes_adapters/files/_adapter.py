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
from typing import Any

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from bayes_adapters import priors, registry
from bayes_adapters.adapters.installation import adapted_layers, require_unadapted, restored_on_error
from bayes_adapters.adapters.targets import Targets
from bayes_adapters.devices import generators_kept
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._folder import (
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS,
    kind,
    read_tensors,
    require_free,
    require_same,
    require_unaltered,
    to_json,
    write,
)
from bayes_adapters.files._folder import describe as describe
from bayes_adapters.inference.guide import AdapterGuide, require_pair
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood

_SAMPLE = 1024  # values of each parameter that the fingerprint looks at


def save(
    directory: str | Path, model: AdapterModel, guide: AdapterGuide, *, task: Mapping[str, Any] | None = None
) -> None:
    """Write the adapter, without its frozen backbone, to ``directory``; each file appears whole or not at all.

    Args:
        directory: made when absent. An adapter saved there before is replaced; a folder of other things is refused.
        model: its adapters, head, likelihood and buffers are saved in the dtype they have; what is frozen stays so.
        guide: the guide made for it.
        task: anything JSON; :func:`load_task` returns it.

    Raises:
        ConfigError: the guide belongs to another model; a class is not registered under its name; a backbone weight is
            trainable (only the adapter is saved); an option or ``task`` is not JSON.
        AdapterFileError: ``directory`` is a file, holds other things, or cannot be written.
    """
    if not isinstance(directory, str | Path):
        raise ConfigError(f"save() takes (directory, model, guide); the directory is a {type(directory).__name__}.")
    folder = Path(directory)
    require_pair(model, guide)
    thawed = [name for name, p in _base_parameters(model.backbone).items() if p.requires_grad]
    if thawed:
        raise ConfigError(
            f"{len(thawed)} weights of the backbone are trainable, for example {thawed[0]!r}, and an adapter's file "
            "does not hold them. Freeze them with requires_grad_(False), or save the whole model with torch.save."
        )
    for part in model.likelihood.modules():
        if isinstance(part, Likelihood):  # the tasks of a likelihood of several are looked up again too
            _entry("likelihood", part, "name")
    require_free(folder)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in _own_tensors(model, guide).items()}
    data = tensors_to_bytes(tensors)
    packages = ("bayes-adapters", "torch", "pyro-ppl", "transformers")
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "model": _entry("model", model, "structure") | {"prior_dtype": _prior_dtype(model)},
        "likelihood": _entry("likelihood", model.likelihood, "name"),
        "prior": model.prior.to_json(registry.find),
        "guide": _entry("guide", guide, "name"),
        "num_data": model.num_data,
        "base": _base(model.backbone),
        "weights": {
            "sha256": hashlib.sha256(data).hexdigest(),
            "tensors": {name: kind(tensor) for name, tensor in tensors.items()},
        },
        "task": None if task is None else dict(task),
    }
    if not model.own_head:
        description["head"] = _entry("head", model.head, "name")
    frozen = [n for n, t in _own_tensors(model, guide).items() if isinstance(t, nn.Parameter) and not t.requires_grad]
    if frozen:
        description["frozen"] = frozen
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
    if not isinstance(directory, str | Path) or not isinstance(backbone, nn.Module):
        given = f"a {type(directory).__name__} and a {type(backbone).__name__}"
        raise ConfigError(f"load() takes (directory, backbone), a path and a torch module; got {given}.")
    folder = Path(directory)
    about = describe(folder)
    tensors = read_tensors(folder, about)
    require_unadapted(backbone)
    _require_base(folder, about["base"], backbone)
    try:
        with restored_on_error(backbone):
            with generators_kept(backbone):  # initial values are drawn and then overwritten
                model, guide = _build(about, backbone)
            _assign(folder, _own_tensors(model, guide), tensors, about.get("frozen", []))
            require_unaltered(folder, about)  # last: what does not fit is said in its own words
    except AdapterFileError:
        raise
    except Exception as error:
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        raise AdapterFileError(
            f"The adapter in {str(folder)!r} cannot be built again: {error} It was saved with {versions}; "
            "install the package that provides the named class, or that version of the library."
        ) from error
    return model.eval(), guide.eval()


def load_task(directory: str | Path) -> dict[str, Any]:
    """Return the ``task`` that was given to :func:`save`.

    Raises:
        AdapterFileError: the folder holds no readable adapter, or one that was saved without a task.
    """
    task = describe(directory)["task"]
    if task is None:
        raise AdapterFileError(
            f"The adapter in {str(directory)!r} was saved without a task, so what it answers is unknown. Save it again "
            "with bayes_adapters.save(..., task=...)."
        )
    return dict(task)


@torch.no_grad()
def fingerprint(backbone: nn.Module) -> str:
    """Return 64 hexadecimal digits that change with the backbone's parameters, and not with adapters in it.

    Hashed are the name, shape and a strided sample of at most 1024 values (as float32) of each parameter, in the order
    of names: equal before adapters are installed, while they are, and after they were removed.

    Raises:
        ConfigError: a parameter has no values (meta device).
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(_base_parameters(backbone).items()):
        if parameter.is_meta:
            raise ConfigError(
                f"The backbone's parameter {name!r} has no values (it is on the meta device). Load its weights first."
            )
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, -(-flat.numel() // _SAMPLE))].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(parameter.shape)}\0".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _base_parameters(backbone: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under the names they have without adapters; the adapters' own are left out."""
    layers = adapted_layers(backbone)
    found: dict[str, nn.Parameter] = {}
    for name, parameter in backbone.named_parameters():
        path = next((p for p in layers if name.startswith(f"{p}.")), None)
        if path is None:
            found[name] = parameter
        elif name.startswith(f"{path}.base_layer."):
            found[f"{path}.{name.removeprefix(f'{path}.base_layer.')}"] = parameter
    return found


def _own_tensors(model: AdapterModel, guide: AdapterGuide) -> dict[str, Tensor]:
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
    if registry.find(what, name) is not type(thing):
        raise ConfigError(
            f"The {what} name {name!r} means another class than this {type(thing).__name__}. Give it a name of its own."
        )
    return {attribute: name, "config": thing.config()}


def _prior_dtype(model: AdapterModel) -> str | None:
    floats = (b.dtype for b in model.prior.buffers() if b.is_floating_point())
    return next((str(dtype).removeprefix("torch.") for dtype in floats), None)


def _base(backbone: nn.Module) -> dict[str, Any]:
    parameters = _base_parameters(backbone)
    return {
        "class": type(backbone).__name__,
        "name_or_path": str(getattr(getattr(backbone, "config", None), "_name_or_path", "") or ""),
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})),
        "parameters": sum(p.numel() for p in parameters.values()),
        "fingerprint": fingerprint(backbone),
    }


def _require_base(folder: Path, saved: Mapping[str, Any], backbone: nn.Module) -> None:
    given = _base(backbone)
    if given["fingerprint"] == saved["fingerprint"]:
        return
    keys = ("class", "name_or_path", "dtype", "parameters")
    differ = [f"{key} {saved[key]!r} saved, {given[key]!r} given" for key in keys if saved[key] != given[key]]
    same = "class, dtype and number of parameters agree, names, shapes or values do not"
    raise AdapterFileError(
        f"The adapter in {str(folder)!r} was made for another backbone: {'; '.join(differ) or same}. Load the one "
        f"it was trained on ({saved['class']} {saved['name_or_path']!r}, {saved['dtype']}), and change no weight of it."
    )


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
    if model.layers != paths:
        raise ConfigError(f"The adapted layers would be {model.layers}, not the saved {paths}.")
    if about["model"]["prior_dtype"] is not None:
        model.prior.to(getattr(torch, about["model"]["prior_dtype"]))
    guide = make_guide(model, **about["guide"]["config"])
    return model, guide.to(next(backbone.parameters()).device)


def _assign(folder: Path, slots: Mapping[str, Tensor], tensors: Mapping[str, Tensor], frozen: Sequence[str]) -> None:
    """Put the saved tensors in place, in the dtype they were saved in, and freeze what was frozen."""

    def kinds(items: Mapping[str, Tensor]) -> dict[str, str]:
        return {n: kind(t.float() if t.is_floating_point() else t) for n, t in items.items()}

    require_same(folder / WEIGHTS, "needed", kinds(slots), kinds(tensors))
    for name, slot in slots.items():
        slot.data = tensors[name].to(slot.device)
    for name in frozen:
        slots[name].requires_grad_(False)
