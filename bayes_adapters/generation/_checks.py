"""What generation refuses: backbones that write no text, prompts it cannot go on from, options that break draws."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.backbones.placement import in_dtype_of
from bayes_adapters.backbones.token_ids import Longest
from bayes_adapters.conditions import read_together, refuse_where
from bayes_adapters.data.batch import TOKEN_MASK, Batch
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError, described
from bayes_adapters.generation.generation import Generation, Writing
from bayes_adapters.inference._checks import check_batch, non_finite
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity

_ONE = {
    "num_beams": "a beam moves rows of the cache that hold different draws",
    "num_return_sequences": "the rows of the cache are the draws; pass a prompt several times, or writing='each'",
    "penalty_alpha": "contrastive search runs the model on several candidates of a row",
}
"""Options whose rows would not be those of the draws → why."""
_HARMLESS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_ONE, (1,)),
    "cache_implementation": ("dynamic", "hybrid"),  # Hugging Face itself no longer takes the latter
}
"""Option → values that change nothing."""
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


def require_one_function(model: AdapterModel, guide: AdapterGuide) -> None:
    """Raise :class:`ConfigError` where a draw would be another one after each token."""
    looking = [site for site in model.sites if site.granularity is Granularity.SEQUENCE] if guide.reads_features else []
    if looking:
        raise ConfigError(
            f"{type(guide).__name__} draws {looking[0].name!r} by the mean over all tokens of a sequence, and while it "
            "is written a sequence has other tokens at each step, and other draws. Take granularity='token' or "
            "'global', or the guide MeanField, whose posterior does not depend on the input."
        )


def check_options(backbone: Any, options: Mapping[str, Any], tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return Hugging Face's configuration with ``options`` in it, and those that are not the configuration's.

    What neither sets comes from the backbone's own configuration, as in Hugging Face's ``generate``.

    Raises:
        ConfigError: an option breaks the draws.
    """
    given = dict(options)
    config = copy.deepcopy(given.pop("generation_config", None) or backbone.generation_config)
    for name, value in backbone.generation_config.to_dict().items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    for name, why in (_ABSENT | _ONE).items():
        value = given.get(name, getattr(config, name, None))
        if value is not None and value not in _HARMLESS.get(name, ()):
            shown = value if isinstance(value, (int, float, str)) else described(value)
            raise ConfigError(
                f"{name}={shown} cannot be used with draws: {why}. Leave it out, or where the backbone's "
                f"generation_config has it, set backbone.generation_config.{name} = None."
            )
    left: dict[str, Any] = config.update(**given)
    if config.stop_strings and tokenizer is None:
        raise ConfigError("stop_strings= are looked for in decoded text: pass tokenizer= as well.")
    config.return_dict_in_generate = False
    return config, left


def check_prompts(model: AdapterModel, batch: Batch, config: Any) -> dict[str, Tensor]:
    """Return what the backbone takes of a batch's inputs.

    Raises:
        DataError: prompts without a token, a decoder's that are padded on the right, token ids that the backbone cannot
            embed, or prompts so long that it has no positions for what is to be written.
        NonFiniteError: NaN or infinity in the inputs or the context.
    """
    backbone: Any = model.backbone
    head_only = (TOKEN_MASK, *getattr(model.head, "own_inputs", ()))
    inputs = {name: value for name, value in batch.inputs.items() if name not in head_only}
    ids, mask = inputs.get("input_ids", inputs.get("inputs_embeds")), inputs.get("attention_mask")
    decoder = not backbone.config.is_encoder_decoder
    if ids is None and decoder:
        raise DataError(f"A decoder goes on from input_ids; the prompts have {', '.join(inputs) or 'nothing'}.")
    if ids is not None and (ids.dim() < 2 or ids.shape[1] == 0):
        raise DataError(
            f"The prompts' input_ids have shape {tuple(ids.shape)}; needed: (B, T) with at least one token. Begin an "
            "empty prompt with the tokenizer's bos_token."
        )
    with read_together():
        check_batch(batch, backbone, next(model.parameters()).device)
        model._traits.check(backbone, inputs)
        if decoder and mask is not None:
            refuse_where(mask[:, -1] == 0, lambda: _behind(mask[:, -1] == 0))
        elif decoder and "input_ids" in inputs:
            padded = _ends_in_padding(inputs["input_ids"], config)
            refuse_where(padded, lambda: _behind(padded, ", without an attention_mask"))
    if decoder and ids is not None:
        _require_room(backbone, ids.shape[1], config, model._traits.longest.get("input_ids"))
    return dict(in_dtype_of(backbone, inputs))


def _ends_in_padding(ids: Tensor, config: Any) -> Tensor:
    """Which rows end in padding, as far as tokens alone tell.

    Where padding is the end of a text, too, all prompts may end so, as those of a chat: then rows that do among others
    that do not.
    """
    pad, ends = config.pad_token_id, config.eos_token_id
    if pad is None:
        return torch.zeros_like(ids[:, 0], dtype=torch.bool)
    padded = ids[:, -1] == pad
    two = pad in (ends if isinstance(ends, list) else [ends])
    return padded & ~padded.all() if two else padded


def _behind(padded: Tensor, how: str = "") -> DataError:
    rows = padded.nonzero().flatten().tolist()
    return DataError(
        f"The prompts' rows {rows[:8]} are padded on the right{how}, and a decoder would go on from padding. Pad on "
        "the left: tokenizer.padding_side = 'left'."
    )


def _require_room(backbone: nn.Module, prompt: int, config: Any, limit: Longest | None) -> None:
    """Raise :class:`DataError` where the last token that is read would have no position in a table of them."""
    new = config.max_new_tokens
    if limit is not None and new is not None and prompt + new - 1 > limit.tokens:
        raise DataError(
            f"Prompts of {prompt} tokens and max_new_tokens={new} are more than the {limit.tokens} positions of "
            f"{type(backbone).__name__}. Shorten the prompts, or write at most {max(0, limit.tokens - prompt + 1)}."
        )


def require_numbers(model: nn.Module, log_probs: Float[Tensor, "S B V"]) -> None:
    """Raise :class:`NonFiniteError` for NaN: entropies of such numbers may look like certainty."""
    bad = log_probs.amax(-1).isnan()  # −∞ is a token that cannot follow

    def explain() -> NonFiniteError:
        rows = bad.any(0).nonzero().flatten().tolist()[:8]
        return non_finite(f"The logits of the next token are NaN in rows {rows} of the batch", model)

    refuse_where(bad, explain)


def require_one_run(before: Tensor | None, ids: Tensor) -> None:
    """Raise :class:`ConfigError` where a text did not grow by one token: ``generate`` has begun another one."""
    if before is not None and ids.shape != (before.shape[0], before.shape[1] + 1):
        raise ConfigError(
            f"The backbone's generate wrote in several runs: its texts had the shape {tuple(before.shape)}, and then "
            f"{tuple(ids.shape)}. So does Whisper's with recordings of more than 30 s, or temperatures to fall back "
            "to. Cut recordings into pieces, and pass one temperature."
        )


def require_written(tokens: Tensor) -> None:
    """Raise :class:`ConfigError` where nothing was written."""
    if tokens.shape[1] == 0:
        raise ConfigError("Hugging Face's generate wrote no token. Is max_new_tokens at least 1?")


def require_hypotheses(texts: Sequence[str] | None, writing: Writing) -> Sequence[str]:
    """Return the texts of all draws; raise :class:`ConfigError` where there are none."""
    if writing is not Writing.EACH:
        raise ConfigError("All draws wrote one text per prompt. Several hypotheses: generate(…, writing='each').")
    if texts is None:
        raise ConfigError(f"There are no texts, only tokens: tokenizer= was {described(None)}. Pass the tokenizer.")
    return texts


def require_averaged(said: Generation, hypotheses: Generation | None) -> None:
    """Raise :class:`ConfigError` unless all draws wrote ``said``, and ``hypotheses`` are of its prompts."""
    if said.writing is not Writing.AVERAGE:
        raise ConfigError("Each text is one draw's own. Scores are of texts that all wrote: writing='average'.")
    count = None if hypotheses is None else len(hypotheses.tokens) / hypotheses.num_samples
    if count is not None and count != len(said.tokens):
        raise ConfigError(f"The hypotheses are of {count:g} prompts, and there are {len(said.tokens)} texts.")


def require_texts(texts: Sequence[str], log_probs: Tensor | None) -> None:
    """Raise :class:`DataError` unless there are texts, and as many ``log_probs`` where there are any."""
    if not len(texts) or (log_probs is not None and log_probs.shape != (len(texts),)):
        shape = "none" if log_probs is None else tuple(log_probs.shape)
        raise DataError(f"Semantic entropy needs at least one text and one log p for each; got {len(texts)}, {shape}.")
    if log_probs is not None and not -math.inf < float(log_probs.max()) < math.inf:  # the maximum shows NaN
        raise DataError(
            f"Log probabilities of texts must be numbers below infinity, one of them above −∞; got "
            f"{log_probs.tolist()[:8]}."
        )


def require_thresholds(threshold: float, limit: float | None) -> None:
    """Raise :class:`ConfigError` unless there is a threshold, and a second one lies beyond it."""
    if math.isnan(threshold):
        raise ConfigError(
            "threshold=nan: no uncertainty compares with it. Does the uncertainty that it is of have NaN?"
        )
    if limit is not None and not limit > threshold:
        raise ConfigError(f"limit={limit} must lie beyond threshold={threshold}: up to it an answer is not given.")


def require_one_uncertainty(values: Tensor, part: str) -> Tensor:
    """Return ``values``; raise :class:`ConfigError` unless there is one per example."""
    if values.dim() != 1:
        raise ConfigError(
            f"A guard looks at one number per example, and the prediction's {part} has shape {tuple(values.shape)}. "
            "Average it over tokens or outputs first."
        )
    return values
