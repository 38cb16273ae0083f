"""Whether a model and a guide belong together."""

from __future__ import annotations

from bayes_adapters.backbones.placement import require_loaded
from bayes_adapters.errors import ConfigError, described
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel


def require_pair(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` unless ``guide`` was built for ``model`` and its adapters are still installed."""
    if not isinstance(model, AdapterModel) or not isinstance(guide, AdapterGuide):
        raise ConfigError(
            "A model such as StochasticCore(backbone, likelihood) and the guide built for it are needed, in this "
            f"order; got {described(model)} and {described(guide)}."
        )
    if guide.model is not model:
        kind = type(guide).__name__
        raise ConfigError(
            f"This {kind} was built for another model than this {type(model).__name__}; build it with this one: "
            f"guide = {kind}(model)."
        )
    model.require_installed()


def require_one_device(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` unless the guide's tensors are where the model's are, and these have numbers."""
    device = next(model.parameters()).device
    if device.type == "meta":
        require_loaded(model.backbone)
    for name, tensor in [*guide.named_parameters(), *guide.named_buffers()]:
        if tensor.device != device:
            raise ConfigError(
                f"The model is on {device} and the guide's {name!r} on {tensor.device}. Call "
                f"guide.to({str(device)!r}), and make an optimizer only after that."
            )
