"""What is refused where a system starts from a trained LoRA."""

from __future__ import annotations

from collections.abc import Collection

from bayes_adapters.adapters._lora_checks import require_lora
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError
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


def no_place(name: str, site: Site) -> ConfigError:
    """A site of a system, or of a guide, whose start a LoRA does not say."""
    return ConfigError(
        f"{name} has {site.name!r}, and no LoRA says where that starts. Systems with random A, B or cores start from "
        "one: 'blob', 'scalabl', 'c-lora' and those after it; others with build()."
    )
