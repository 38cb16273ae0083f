"""What cannot be given random weights after training."""

from __future__ import annotations

from bayes_adapters.adapters._lora_checks import require_lora
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError, true_or_false, whole_number
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._checks import require_plain_model, require_weights


def read_num_data(num_data: int | None, model: AdapterModel) -> int | None:
    """Return N as given, else the model's, if it has one; raise :class:`ConfigError` unless it is 1 at least."""
    if num_data is None:
        return model.num_data
    whole_number("num_data", num_data)
    return num_data


def require_choice(model: AdapterModel, weights: str, head: bool) -> None:
    """Raise :class:`ConfigError` unless the model has what is to be random."""
    true_or_false("head", head)
    if weights == "sites" and not model.sites:
        raise ConfigError(
            f"This {type(model).__name__} has no random weights of its own. Take weights='factors' (A and B) or 'core'."
        )
    if weights == "sites" and head:
        raise ConfigError(
            "With weights='sites' the model stays as it is, and its head has no random weights. Take weights='factors' "
            "or 'core', or build the model with head=JointLinear() before training."
        )


def require_lora_model(model: AdapterModel, weights: str) -> None:
    """Raise :class:`ConfigError` unless the model equals a plain LoRA at fixed weights."""
    if weights == "sites":
        raise ConfigError("A model's own sites are random already: nothing is to be built. Take 'factors' or 'core'.")
    require_weights(model.sites)
    require_plain_model(model)
    for layer in adapted_layers(model.backbone).values():
        require_lora(layer)


def trained_parts(model: AdapterModel) -> str:
    """Return which factors of a plain LoRA were trained: ``"AB"``, or one of them where the other alone is frozen.

    Raises:
        ConfigError: layers differ in it.
    """
    if model.sites:  # factors of such a model are products with what is random
        return "AB"
    found = {path: _trained(layer) for path, layer in adapted_layers(model.backbone).items()}
    if len(set(found.values())) > 1:
        raise ConfigError(
            f"Which factors are frozen differs by layer: {found}. A posterior of the factors has the same parts in all "
            "layers: freeze A, or B, in all of them, or take weights='core'."
        )
    return next(iter(found.values()))


def _trained(layer: AdaptedLinear) -> str:
    trained = "".join(part for part in "AB" if layer.get_parameter(f"lora_{part}").requires_grad)
    return trained or "AB"  # all of it frozen, as after training


def require_linear(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` unless the head is the linear one, whose weights have a known place."""
    if type(model.head) is not LinearHead:
        raise ConfigError(
            f"Only the weights of a LinearHead become random after training; the head is a "
            f"{type(model.head).__name__}. Leave the head as it is (head=False), or train with a LinearHead."
        )
