"""What generation refuses: backbones that write no text, prompts it cannot go on from, options that break draws."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from bayes_adapters.conditions import refuse_where
from bayes_adapters.errors import ConfigError, DataError, described, unknown_name
from bayes_adapters.generation.generation import Writing
from bayes_adapters.inference.model import AdapterModel

PARTS = ("total", "aleatoric", "epistemic")
"""Of an uncertainty."""
_ONE = {
    "num_beams": "a beam moves rows of the cache that hold different draws",
    "num_return_sequences": "the rows of the cache are the draws; pass a prompt several times, or writing='each'",
    "penalty_alpha": "contrastive search runs the model on several candidates of a row",
}
"""Options whose rows would not be those of the draws → why."""
_ABSENT = {
    "assistant_model": "a draft model's tokens are accepted by one model, not by an average of draws",
    "prompt_lookup_num_tokens": "several tokens are accepted at a time, and each has uncertainties of its own",
    "past_key_values": "a cache that was filled before is of other draws, or of none",
    "cache": "a cache that was filled before is of other draws, or of none",
    "cache_implementation": "only the usual cache, which grows, takes the rows of the draws",
    "prefill_chunk_size": "a prompt is read in one pass",
    "custom_generate": "another loop may not call the model once per token",
    "dola_layers": "logits of other layers are no predictive",
    "guidance_scale": "it runs the model a second time without the prompt",
    "constraints": "constraints search with beams",
    "force_words_ids": "constraints search with beams",
}


def require_language_model(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` unless the backbone has Hugging Face's ``generate``, and logits."""
    backbone: Any = model.backbone
    able = getattr(backbone, "can_generate", None)
    if callable(able) and able():
        return
    name = type(backbone).__name__
    raise ConfigError(
        f"A {name} writes no text: it has no language-model head. Build the adapter on "
        "AutoModelForCausalLM.from_pretrained(…), or AutoModelForSeq2SeqLM's, instead of the AutoModel."
    )


def check_options(backbone: Any, options: Mapping[str, Any], tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return Hugging Face's configuration with ``options`` in it, and those that are not the configuration's.

    Raises:
        ConfigError: an option breaks the draws.
    """
    given = dict(options)
    config = copy.deepcopy(given.pop("generation_config", None) or backbone.generation_config)
    for name, why in (_ABSENT | _ONE).items():
        value = given.get(name, getattr(config, name, None))
        if value is not None and (name in _ABSENT or value != 1):
            shown = value if isinstance(value, (int, float, str)) else described(value)
            raise ConfigError(f"{name}={shown} cannot be used with draws: {why}. Leave it out.")
    left: dict[str, Any] = config.update(**given)
    if config.stop_strings and tokenizer is None:
        raise ConfigError("stop_strings= are looked for in decoded text: pass tokenizer= as well.")
    config.return_dict_in_generate = False
    if config.stop_strings:
        left["tokenizer"] = tokenizer
    return config, left


def check_prompts(backbone: nn.Module, inputs: MutableMapping[str, Tensor] | Mapping[str, Tensor]) -> None:
    """Raise :class:`DataError` for prompts without a token, and for a decoder's that are padded on the right."""
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None and not getattr(backbone.config, "is_encoder_decoder", False):
        raise DataError(f"A decoder goes on from input_ids; the prompts have {', '.join(inputs) or 'nothing'}.")
    if ids is not None and (ids.dim() != 2 or ids.shape[1] == 0):
        raise DataError(
            f"The prompts' input_ids have shape {tuple(ids.shape)}; needed: (B, T) with at least one token. Begin an "
            "empty prompt with the tokenizer's bos_token."
        )
    if mask is None or getattr(backbone.config, "is_encoder_decoder", False):
        return

    def behind() -> DataError:
        rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
        return DataError(
            f"The prompts' rows {rows[:8]} are padded on the right, and a decoder would go on from padding. Pad on the "
            "left: tokenizer.padding_side = 'left'."
        )

    refuse_where(mask[:, -1] == 0, behind)


def require_written(tokens: Tensor, steps: Sequence[Any]) -> None:
    """Raise :class:`ConfigError` where the backbone was not called once for each token."""
    if tokens.shape[1] == 0 or len(steps) < tokens.shape[1]:
        raise ConfigError(
            f"Hugging Face's generate returned {tokens.shape[1]} new tokens after {len(steps)} calls of the backbone; "
            "needed are one or more, and a call for each. Is max_new_tokens at least 1?"
        )


def require_hypotheses(texts: Sequence[str] | None, writing: Writing) -> Sequence[str]:
    """Return the texts of all draws; raise :class:`ConfigError` where there are none."""
    if writing is not Writing.EACH:
        raise ConfigError("All draws wrote one text per prompt. Several hypotheses: generate(…, writing='each').")
    if texts is None:
        raise ConfigError(f"There are no texts, only tokens: tokenizer= was {described(None)}. Pass the tokenizer.")
    return texts


def require_texts(texts: Sequence[str], log_probs: Tensor | None) -> None:
    """Raise :class:`DataError` unless there are texts, and as many ``log_probs`` where there are any."""
    if not len(texts) or (log_probs is not None and log_probs.shape != (len(texts),)):
        shape = "none" if log_probs is None else tuple(log_probs.shape)
        raise DataError(f"Semantic entropy needs at least one text and one log p for each; got {len(texts)}, {shape}.")


def require_part(part: str) -> None:
    """Raise :class:`ConfigError` unless ``part`` is one of an uncertainty."""
    if part not in PARTS:
        raise unknown_name("part of the uncertainty", part, PARTS)


def require_order(threshold: float, limit: float) -> None:
    """Raise :class:`ConfigError` unless the second threshold lies beyond the first."""
    if not limit > threshold:
        raise ConfigError(f"limit={limit} must lie beyond threshold={threshold}: up to it an answer is not given.")


def require_one_uncertainty(values: Tensor, part: str) -> Tensor:
    """Return ``values``; raise :class:`ConfigError` unless there is one per example."""
    if values.dim() != 1:
        raise ConfigError(
            f"A guard looks at one number per example, and the prediction's {part} has shape {tuple(values.shape)}. "
            "Average it over tokens or outputs first."
        )
    return values
