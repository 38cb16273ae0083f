"""What is refused in the tensors and the head of a PEFT folder, and in a model that is to be written as one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.errors import AdapterFileError, ConfigError, described
from bayes_adapters.files._checks import not_finite
from bayes_adapters.inference.model import AdapterModel

_READ_FROM_FOLDER = {
    "targets": "target_modules", "rank": "r", "ranks": "rank_pattern", "alpha": "lora_alpha",
    "target_modules": "target_modules", "r": "r", "lora_alpha": "lora_alpha", "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern", "use_rslora": "use_rslora", "task_type": "task_type",
}  # fmt: skip
LINEAR = {"weight", "bias"}


def require_own_options(options: Collection[str]) -> None:
    """Raise :class:`ConfigError` if an option's name is that of something which is read from the folder."""
    own = sorted(set(_READ_FROM_FOLDER) & set(options))
    if own:
        names = ", ".join(f"{name} ({_READ_FROM_FOLDER[name]})" for name in own)
        raise ConfigError(f"{names} of a PEFT adapter are read from its folder; leave them out.")
    if "lora_dropout" in options:
        raise ConfigError("PEFT's lora_dropout is called dropout here, and without it the folder's own is taken.")


def no_weights(path: Path) -> AdapterFileError:
    """Build the error for a folder without ``adapter_model.safetensors``."""
    pickled = path.with_name("adapter_model.bin")
    return AdapterFileError(
        f"{str(path)!r} does not exist."
        + (
            f" {pickled.name} beside it is a pickle, which could run any code and is not read: load it with PEFT "
            "and save it again with save_pretrained(folder, safe_serialization=True)."
            if pickled.is_file()
            else " Give the folder that PEFT's save_pretrained wrote."
        )
    )


def require_factors(path: Path, halves: Mapping[str, Collection[str]], others: Collection[str]) -> None:
    """Raise :class:`AdapterFileError` unless every adapted layer has A and B, and no other tensor is an adapter's.

    Args:
        path: of the weights' file.
        halves: path of a layer → which of "A" and "B" it has.
        others: names of all other tensors.
    """
    strange = [name for name in others if "lora_" in name and not name.endswith(".lora_B.bias")]
    alone = [path for path, pair in halves.items() if len(pair) != 2]
    if strange or alone or not halves:
        what = f"holds {strange[0]!r}" if strange else f"lacks A or B of {alone[0]!r}" if alone else "holds no A and B"
        raise AdapterFileError(
            f"{str(path)!r} {what}; each adapted linear layer has lora_A.weight and lora_B.weight, and "
            "these adapters can express nothing else. Was it trained on embeddings or convolutions, or with "
            "DoRA?"
        )


def not_placed(
    folder: Path, missing: Sequence[str], paths: Sequence[str], linear: Collection[str], backbone: nn.Module
) -> AdapterFileError:
    """Build the error for adapters of layers that the backbone does not have.

    Args:
        folder: of the adapters.
        missing: paths of the adapted layers that are none of the backbone's.
        paths: of all adapted layers.
        linear: paths of the backbone's linear layers.
        backbone: the one that was given.
    """
    kind = type(backbone).__name__
    if len(missing) < len(paths) and all("." not in p for p in missing):
        return AdapterFileError(
            f"The adapters in {str(folder)!r} fit this {kind}, but {', '.join(missing)} is adapted "
            "too, a layer of the head that stands on the backbone. Here the head is a layer of its own and no adapter "
            f"serves it. Merge that one with PEFT, or train again without {missing[0]!r} among the target_modules."
        )
    return AdapterFileError(
        f"{len(missing)} of {len(paths)} adapted layers in {str(folder)!r} are no linear layers of this "
        f"{kind}, for example {missing[0]!r}; its linear layers are called such as "
        f"{min(linear, default='(none)')!r}. Load the backbone the adapters were trained on; layers of a model's head "
        "cannot be adapted. Of an encoder–decoder give both halves, or name the one that this backbone is not: "
        "leave_out='decoder'."
    )


def require_some_left(folder: Path, leave_out: str, paths: Sequence[str], kept: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless ``leave_out`` names some of the adapted layers ``paths``, and not all."""
    if len(kept) in (0, len(paths)):
        raise ConfigError(
            f"leave_out={leave_out!r} drops {len(paths) - len(kept)} of the {len(paths)} adapted layers in "
            f"{str(folder)!r}, which are called such as {', '.join(map(repr, (paths[0], paths[-1])))}. It is the name "
            "of the half of an encoder–decoder that the backbone is not: 'decoder' or 'encoder'."
        )


def check_shapes(
    folder: Path, placed: Mapping[str, tuple[Tensor, Tensor]], backbone: nn.Module, ranks: Mapping[str, int]
) -> None:
    """Raise :class:`AdapterFileError` unless every A is (r, d_in) and every B (d_out, r)."""
    for path, (down, up) in placed.items():
        rank = ranks[path]
        if not (down.is_floating_point() and up.is_floating_point()):
            raise AdapterFileError(
                f"A and B of {path!r} in {str(folder)!r} are {down.dtype} and {up.dtype}; floating-point numbers are "
                "needed. They were altered, or quantised: save them in float32."
            )
        d_in, d_out = dimensions(backbone.get_submodule(path)) or (0, 0)
        given, wanted = (tuple(down.shape), tuple(up.shape)), ((rank, d_in), (d_out, rank))
        if given != wanted:
            raise AdapterFileError(
                f"A and B of {path!r} in {str(folder)!r} have shapes {given[0]} and {given[1]}; rank {rank} and this "
                f"backbone's layer need {wanted[0]} and {wanted[1]}. Load the backbone the adapters were trained on."
            )


def require_own_configuration(path: Path, stated: str, checksum: str) -> None:
    """Raise :class:`AdapterFileError` if the weights state another checksum of the configuration at ``path``."""
    if stated != checksum:
        raise AdapterFileError(
            f"{str(path)!r} is not the configuration that its weights were written with: another rank or "
            "alpha means another function. Copy the whole folder again, or write it again."
        )


def require_predicts(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`AdapterFileError` if a tensor holds NaN, or A or B an infinity."""
    slots = {name: nn.Parameter(value, requires_grad=False) for name, value in tensors.items() if "lora_" in name}
    wrong = not_finite(tensors, slots)
    if wrong:
        raise AdapterFileError(f"{str(path)!r} cannot predict: {wrong}. Train it again, or take an earlier save.")


def require_own_head(
    path: Path, metadata: Mapping[str, str], names: Collection[str], weights: str, poolings: Collection[str]
) -> None:
    """Raise :class:`AdapterFileError` unless a head's file is one of ``to_peft`` for the adapters beside it.

    Args:
        path: of the file.
        metadata: its text entries.
        names: of its tensors.
        weights: SHA-256 of the adapters beside it, 64 hexadecimal digits.
        poolings: what a head can read.
    """
    if metadata.get("pooling") not in poolings or "weight" not in names or not set(names) <= LINEAR:
        raise AdapterFileError(f"{str(path)!r} was not written by to_peft. Remove it, or write it again.")
    if metadata.get("weights", weights) != weights:
        raise AdapterFileError(
            f"{str(path)!r} was written with other adapters than those beside it: PEFT, or another program, has "
            "replaced them since. Remove it and train a new head, or write the folder again."
        )


def no_head(folder: Path, shape: Sequence[int], per_token: bool, has: str, lacking: str) -> ConfigError:
    """Build the error for ``head=True`` where no head was found, linear of ``shape`` (K, d) or whole.

    ``has`` says what was found, and ``lacking`` what is not there of a head of transformers.
    """
    return ConfigError(
        f"head=True, but {str(folder)!r} has no single linear head of shape {shape} for one target per "
        f"{'token' if per_token else 'example'}: it has {has}. Take another likelihood, or head=None."
        f"{lacking}"
    )


def require_prefix(prefix: str | None, into: object = None) -> None:
    """Raise :class:`ConfigError` unless ``prefix`` is None, empty, or names that each end in a dot, and alone."""
    if prefix is not None and not re.fullmatch(r"(\w+\.)*", prefix):
        raise ConfigError(f"prefix must be empty or names that each end in a dot, such as 'model.'; got {prefix!r}.")
    if prefix is not None and into is not None:
        raise ConfigError(f"prefix={prefix!r} and into= a {type(into).__name__} say the same thing; give one of them.")


def require_module(net: object) -> None:
    """Raise :class:`ConfigError` unless ``into=`` is a model."""
    if not isinstance(net, nn.Module):
        raise ConfigError(f"into= is the model that PEFT is to load the adapters into; got {described(net)}.")


def no_prefix(net: nn.Module, layers: Sequence[str], fitting: Sequence[str]) -> ConfigError:
    """Build the error for a model that does not have all of ``layers``, or has them below each of ``fitting``."""
    kind = type(net).__name__
    if fitting:
        return ConfigError(
            f"This {kind} has {layers[0]!r} below each of {', '.join(map(repr, fitting))}. Say which: prefix=."
        )
    return ConfigError(
        f"This {kind} does not have the {len(layers)} adapted layers, such as {layers[0]!r}, below one path. Give the "
        "model that the backbone is taken out of, without adapters of PEFT, or say prefix=."
    )


def require_plain(model: AdapterModel, layers: Mapping[str, AdaptedLinear]) -> None:
    """Raise :class:`ConfigError` unless one A and one B for each of ``layers`` say all that the adapters compute."""
    odd = [f"{site.name!r} is random" for site in model.latent_sites]
    odd += [f"{path!r} has inter-modal paths" for path, layer in layers.items() if len(layer.inter)]
    require_one_backbone(model)
    if odd or not layers:
        what = odd[0] if odd else "no layer has a rank above 0"
        raise ConfigError(
            f"A PEFT folder holds one A and one B for each layer; here {what}. Write the posterior mean as a LoRA, or "
            "use bayes_adapters.save, which keeps the whole posterior."
        )


def require_one_backbone(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where a model has several encoders."""
    if isinstance(model.backbone, nn.ModuleDict):
        raise ConfigError(
            f"A PEFT folder belongs to one backbone; this {type(model).__name__} has the encoders "
            f"{', '.join(model.backbone)}. Use bayes_adapters.save, which keeps the whole model."
        )
