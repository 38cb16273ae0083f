"""What is refused where a system starts from a trained LoRA."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from bayes_adapters.adapters._lora_checks import require_lora
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Site
from bayes_adapters.systems.table import SYSTEMS

_OWN = ("targets", "rank", "alpha", "ranks", "pooling", "head")


def require_startable(name: str, lora: AdapterModel, overrides: Collection[str]) -> None:
    """Raise :class:`ConfigError` unless ``lora`` is a LoRA in its backbone, and no option is one that it says."""
    if not isinstance(lora, AdapterModel):
        raise ConfigError(f"start() takes (name, model), such as a LoRA of from_peft; got a {type(lora).__name__}.")
    if lora.sites or not lora.layers:
        what = f"{lora.sites[0].name!r} is random" if lora.sites else "it has no adapted layer"
        raise ConfigError(
            f"start({name!r}, …) takes a trained LoRA; of this {type(lora).__name__} {what}. Export its mean first: "
            "bayes_adapters.surgery.export.to_lora(model, guide, backbone)."
        )
    system = SYSTEMS.get(name)
    if system is not None and system.model.layer is not AdaptedLinear:
        raise ConfigError(
            f"The layers of {name} are {system.model.layer.__name__}, whose factors are no LoRA's, so no LoRA says "
            f"where they start. Make it with build({name!r}, …), or start another system, such as 'blob' or 'c-lora'."
        )
    lora.require_installed()
    for layer in lora.installed.values():
        require_lora(layer)
    own = sorted(set(_OWN) & set(overrides))
    if own:
        raise ConfigError(f"{', '.join(own)}: start({name!r}, …) takes these from the LoRA; leave them out.")


def require_fitting(model: AdapterModel, lora: AdapterModel) -> None:
    """Raise :class:`ConfigError` unless ``model`` has the layers, ranks, scales and head of the LoRA ``lora``."""
    if not isinstance(lora, AdapterModel) or lora.sites or not lora.layers:
        raise ConfigError(
            f"start_at(model, guide, lora) takes a trained LoRA, with nothing random; got {described(lora)}. Export "
            "the mean of another model first: bayes_adapters.surgery.export.to_lora(model, guide, backbone)."
        )
    for layer in lora.installed.values():
        require_lora(layer)
    wanted, found = ({path: _size(layer) for path, layer in each.installed.items()} for each in (lora, model))
    other = [path for path in {**wanted, **found} if wanted.get(path) != found.get(path)]
    if other:
        raise ConfigError(
            f"{other[0]!r} has (formula, rank, scale) {found.get(other[0], 'no adapter')} in the model and "
            f"{wanted.get(other[0], 'no adapter')} in the LoRA. Build the model with the LoRA's targets, rank, ranks "
            "and alpha."
        )
    shapes = [{name: v.shape for name, v in each.head.state_dict().items()} for each in (model, lora)]
    if type(model.head) is not type(lora.head) or shapes[0] != shapes[1]:
        raise ConfigError(
            f"The model's {type(model.head).__name__} is not the LoRA's {type(lora.head).__name__} of the same size. "
            "Build the model with head=lora.head.fresh(), and the LoRA's likelihood."
        )


def _size(layer: AdaptedLinear) -> tuple[str, int, float]:
    return type(layer).__name__, layer.rank, round(layer.scaling, 9)


def require_placed(guide: object, mean: Mapping[str, Tensor], wanted: Mapping[str, Tensor | None]) -> None:
    """Raise :class:`ConfigError` unless the posterior's means are the ``wanted`` ones; None stands for any."""
    for name, value in wanted.items():
        if value is not None and not torch.allclose(mean[name].cpu(), value.cpu().to(mean[name]), rtol=1e-4, atol=1e-5):
            raise _no_mean(guide)


@contextmanager
def tells_mean(guide: object) -> Iterator[None]:
    """Say of a guide whose mean is asked for within the context, and not known, that it has no start."""
    try:
        yield
    except ConfigError as error:
        raise _no_mean(guide) from error


def _no_mean(guide: object) -> ConfigError:
    return ConfigError(
        f"{type(guide).__name__} cannot start at a LoRA: its mean is not known, or no parameter of it. Take MeanField, "
        "RankWise, LowRank, FullGaussian or MatrixNormal."
    )


def no_place(name: str, site: Site) -> ConfigError:
    """A site of a system, or of a guide, whose start a LoRA does not say."""
    return ConfigError(
        f"{name} has {site.name!r}, and no LoRA says where that starts. Systems with random A, B or cores start from "
        "one: 'blob', 'scalabl', 'c-lora' and those after it; others with build()."
    )
