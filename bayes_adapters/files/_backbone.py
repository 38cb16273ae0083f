"""Which backbone an adapter belongs to: every byte of its tensors, and what its configuration computes with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.files._adapter_checks import other_backbone, require_values, without_bytes
from bayes_adapters.files._quantisation import quantisation
from bayes_adapters.files._structure import structure
from bayes_adapters.files._wrappers import unwrapped

_SAMPLE = 1024  # values of each parameter that the fingerprint of older files looks at

_NO_NUMBERS = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map",
    "dtype", "torch_dtype", "attn_implementation", "_attn_implementation", "quantization_config", "device_map",
    "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "torchscript",
    "chunk_size_feed_forward", "gradient_checkpointing", "use_bfloat16", "pruned_heads",
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "tokenizer_class", "prefix", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
}  # fmt: skip
"""Entries of a configuration that say where a model is from, what its head answers or how it is run."""
_TRAINING = ("drop", "initializer", "init_std", "mask_time", "mask_feature", "apply_spec_augment", "loss", "_coef")
"""What stands in the names of entries that act in training only."""


def fingerprint(backbone: nn.Module) -> str:
    """Return 64 hexadecimal digits that change with anything the frozen backbone computes with.

    Hashed are name, dtype, shape and every byte of each parameter and persistent buffer, those entries of the
    configuration that change numbers in eval mode (heads, activation, layer norm's ε; not dropout, labels or paths),
    the same options of torch's own layers, and the scales of quantised ones.
    Adapters do not count, nor do the wrappers of ``torch.compile`` and parallel training: it is equal before adapters
    are installed, while they are, and after they were removed. A tensor that is spread over processes is gathered, so
    each of them must call this.

    Args:
        backbone: the module, or a ``ModuleDict`` of several.

    Raises:
        ConfigError: a parameter has no values (meta device), or is of a class that does not give its bytes.

    >>> net = nn.Linear(2, 2)
    >>> before = fingerprint(net)
    >>> net.weight.data[0, 0] += 1e-7 * abs(net.weight.data[0, 0]) + 1e-9
    >>> fingerprint(net) == before
    False
    """
    scales = scales_beside(backbone)
    return _joined(content(backbone), computing_fields(backbone), layer_options(backbone), scales)


def _joined(tensors: str, fields: Mapping[str, Any], options: str, scales: str) -> str:
    parts = [tensors, json.dumps(fields, sort_keys=True), options, *([scales] if scales else [])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


@torch.no_grad()
def content(backbone: nn.Module, trained: bool = True) -> str:
    """Return the hash of names, dtypes, shapes and bytes of all parameters and persistent buffers.

    Args:
        backbone: the module, or a ``ModuleDict`` of several.
        trained: whether parameters that require a gradient count.
    """
    digest = hashlib.sha256()
    known: dict[int, bytes] = {}  # tied weights have several names and are read once
    with unwrapped(backbone) as plain:
        for name, tensor in sorted(_base_tensors(plain).items()):
            if tensor.requires_grad and not trained:
                continue
            if id(tensor) not in known:
                known[id(tensor)] = _digest(name, tensor)
            digest.update(f"{name}\0".encode() + known[id(tensor)])
    return digest.hexdigest()


def computing_fields(backbone: nn.Module) -> dict[str, Any]:
    """Return the entries of the configuration that change numbers in eval mode, as JSON; of several by their names."""
    with unwrapped(backbone) as plain:
        if hasattr(plain, "config"):
            return _fields(plain.config)
        children = {name: getattr(child, "config", None) for name, child in plain.named_children()}
        return {name: _fields(config) for name, config in children.items() if config is not None}


def layer_options(backbone: nn.Module) -> str:
    """Return the hash of :func:`bayes_adapters.files._structure.structure`."""
    with unwrapped(backbone) as plain:
        own = adapted_layers(plain)
        return structure(plain, lambda name: _base_name(name, own))


def scales_beside(backbone: nn.Module) -> str:
    """Return :func:`bayes_adapters.files._quantisation.quantisation`: "" of a backbone that is not quantised so."""
    with unwrapped(backbone) as plain:
        own = adapted_layers(plain)
        return quantisation(plain, lambda name: _base_name(name, own))


def old_fingerprint(backbone: nn.Module) -> str:
    """Return what older files call the fingerprint: of each parameter at most 1024 values, as float32."""
    digest = hashlib.sha256()
    with unwrapped(backbone) as plain:
        for name, parameter in sorted(base_parameters(plain).items()):
            flat = parameter.detach().reshape(-1)
            sample = flat[:: max(1, -(-flat.numel() // _SAMPLE))].to("cpu", torch.float32)
            digest.update(f"{name} {tuple(parameter.shape)}\0".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def base_parameters(plain: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of an unwrapped backbone under the names they have without adapters; tied ones once."""
    own = adapted_layers(plain)
    named = ((_base_name(name, own), p) for name, p in plain.named_parameters())
    return {name: p for name, p in named if name is not None}


def describe_base(backbone: nn.Module) -> dict[str, Any]:
    """Return what a saved adapter says of its backbone."""
    fields, tensors, options = computing_fields(backbone), content(backbone), layer_options(backbone)
    scales = scales_beside(backbone)
    with unwrapped(backbone) as plain:
        parameters = base_parameters(plain)
        return {
            "class": type(plain).__name__,
            "name_or_path": str(getattr(getattr(plain, "config", None), "_name_or_path", "") or ""),
            "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})),
            "parameters": sum(p.numel() for p in parameters.values()),
            "fingerprint": _joined(tensors, fields, options, scales),
            "tensors": tensors,
            "layers": options,
            "scales": scales,
            "config": fields,
        }


def require_base(folder: Path, about: Mapping[str, Any], backbone: nn.Module) -> None:
    """Raise :class:`AdapterFileError` unless ``backbone`` computes what the adapter's own one did.

    An entry of the configuration that only one of the two has comes from another version of transformers: it is not
    compared. Options of layers are compared where torch and transformers have the versions of the saved file. An older
    file has no "scales", which are then not compared, or no "tensors"; its sampled fingerprint is compared.
    """
    saved, given = about["base"], describe_base(backbone)
    if "tensors" not in saved:
        differ = [] if old_fingerprint(backbone) == saved["fingerprint"] else ["names, shapes or values of its weights"]
    else:
        differ = [] if given["tensors"] == saved["tensors"] else ["names, dtypes, shapes or values of its tensors"]
        differ += _differences(saved["config"], given["config"])
        if saved.get("scales", given["scales"]) != given["scales"]:
            differ.append("scales or threshold of its quantised layers")
        if not differ and saved.get("layers", given["layers"]) != given["layers"] and _same_versions(about["versions"]):
            differ.append("options of its layers, such as a norm's ε or an activation")
    if differ:
        raise other_backbone(folder, saved, given, differ)


def _same_versions(saved: Mapping[str, str]) -> bool:
    return all(saved.get(name) == version(name) for name in ("torch", "transformers"))


def _differences(saved: Any, given: Any, path: str = "config") -> list[str]:
    if isinstance(saved, dict) and isinstance(given, dict):
        shared = [key for key in saved if key in given]
        return [line for key in shared for line in _differences(saved[key], given[key], f"{path}.{key}")]
    return [] if saved == given else [f"{path} {saved!r} saved, {given!r} given"]


def _fields(config: Any) -> dict[str, Any]:
    described = config.to_dict() if callable(getattr(config, "to_dict", None)) else dict(vars(config))
    return dict(sorted(_computing(described).items()))


def _computing(entries: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in entries.items():
        name = str(key)
        if name in _NO_NUMBERS or any(part in name for part in _TRAINING):
            continue
        if isinstance(value, Mapping):
            found[name] = _computing(value)
            continue
        try:
            found[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):  # an object of the model's own code
            continue
    return found


def _base_tensors(plain: nn.Module) -> dict[str, Tensor]:
    own = adapted_layers(plain)
    named = [*plain.named_parameters(remove_duplicate=False), *_persistent_buffers(plain)]
    return {base: tensor for name, tensor in named if (base := _base_name(name, own)) is not None}


def _persistent_buffers(plain: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in plain.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield (f"{path}.{name}" if path else name), buffer


def _base_name(name: str, own: Mapping[str, Any]) -> str | None:
    """The name without adapters of one of the backbone's tensors; None for a tensor of the adapters."""
    parts = name.split(".")
    path = next((p for end in range(len(parts)) if (p := ".".join(parts[:end])) in own), None)
    if path is None:
        return name
    rest = name.removeprefix(f"{path}.")
    return f"{path}.{rest.removeprefix('base_layer.')}" if rest.startswith("base_layer.") else None


def _digest(name: str, tensor: Tensor) -> bytes:
    require_values(name, tensor)
    digest = hashlib.sha256()
    for part in _plain_parts(name, tensor.detach()):
        digest.update(f"{part.dtype} {tuple(part.shape)}\0".encode())
        try:
            flat = part.resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        except (RuntimeError, TypeError, NotImplementedError, ValueError) as error:
            raise without_bytes(name, part, str(error)) from error
    return digest.digest()


def _plain_parts(name: str, tensor: Tensor) -> list[Tensor]:
    """Return the dense tensors that a tensor consists of: itself, what processes share, or the quantised parts."""
    if type(tensor) in {Tensor, nn.Parameter, nn.Buffer}:
        return [tensor]
    gather, flatten = getattr(tensor, "full_tensor", None), getattr(tensor, "__tensor_flatten__", None)
    if callable(gather):
        return _plain_parts(name, gather())
    if callable(flatten):
        return [part for inner in sorted(flatten()[0]) for part in _plain_parts(name, getattr(tensor, inner))]
    if type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__:  # a name of its own, and torch's bytes
        return [tensor.as_subclass(Tensor)]
    raise without_bytes(name, tensor, "it has neither full_tensor() nor __tensor_flatten__()")
