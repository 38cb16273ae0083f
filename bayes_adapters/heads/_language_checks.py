"""What heads of language models refuse: other backbones and likelihoods, answers of several tokens, wrong masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.backbones.hidden_states import config_width
from bayes_adapters.backbones.language_models import has_decoder, is_language_model, vocabulary_size
from bayes_adapters.conditions import refuse_where
from bayes_adapters.data.streams import TARGETS
from bayes_adapters.distributions import IGNORED
from bayes_adapters.errors import ConfigError, DataError, described
from bayes_adapters.likelihoods import Likelihood, NextToken


def require_language_model(head: str, backbone: nn.Module, width: int) -> None:
    """Raise :class:`ConfigError` unless ``backbone`` is a language model whose logits reach the head as they are."""
    if not is_language_model(backbone):
        raise ConfigError(
            f"{head} reads the logits of a language model's own output layer, and {type(backbone).__name__} writes no "
            "text. Load the backbone with AutoModelForCausalLM or AutoModelForSeq2SeqLM.from_pretrained(...), or take "
            "a head on hidden states, such as LinearHead(pooling='last')."
        )
    own = config_width(backbone)
    if own != width:
        raise ConfigError(
            f"{head} reads logits, and this structure gives its head {width} numbers where {type(backbone).__name__} "
            f"is {own} wide: it joins other modalities after the backbone. Take a structure that leaves the output as "
            "it is, such as LoRA or StochasticCore."
        )


def require_answers(answers: Any) -> tuple[int, ...]:
    """Return token ids as integers; raise :class:`ConfigError` unless they are two or more different ones."""
    given = answers.tolist() if isinstance(answers, Tensor) else answers
    fits = isinstance(given, Sequence) and not isinstance(given, str)
    ids = [] if not fits else [one for one in given if isinstance(one, int) and not isinstance(one, bool) and one >= 0]
    if not fits or len(ids) != len(given) or len(ids) < 2 or len(set(ids)) != len(ids):
        raise ConfigError(
            f"answers must be two or more different token ids, one for each class; got {given!r:.80}. Of strings make "
            "them by AnswerTokens.of(tokenizer, ['A', 'B', 'C', 'D'])."
        )
    return tuple(ids)


def require_in_vocabulary(answers: Sequence[int], backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` where an answer is no token of the backbone's output layer."""
    size = vocabulary_size(backbone)
    beyond = [one for one in answers if one >= size]
    if beyond:
        raise ConfigError(
            f"The answers {beyond} are no tokens of {type(backbone).__name__}, whose output layer has {size}. Was the "
            "tokenizer that of another model?"
        )


def require_classes(head: str, answers: int, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood has one target per example and a class for each answer."""
    if likelihood.per_token or likelihood.num_outputs != answers:
        has = "one target per token" if likelihood.per_token else f"{likelihood.num_outputs} outputs"
        raise ConfigError(
            f"{head} gives {answers} logits per example, one for each answer, and {type(likelihood).__name__} has "
            f"{has}. Take Categorical({answers}) as the likelihood."
        )


def answer_ids(tokenizer: Any, choices: Sequence[str], prefix: str) -> list[int]:
    """Return the token of each choice behind ``prefix``.

    Raises:
        ConfigError: a choice is not one token, is unknown to the tokenizer, or two choices are the same token.
    """
    if isinstance(choices, str) or not all(isinstance(choice, str) and choice for choice in choices):
        raise ConfigError(f"choices must be a list of strings, such as ['A', 'B']; got {described(choices)}.")
    unknown, found = getattr(tokenizer, "unk_token_id", None), []
    for choice in choices:
        ids = _tokens(tokenizer, prefix + choice)
        if len(ids) != 1 or ids[0] == unknown:
            other = "" if prefix else " "
            alone = _tokens(tokenizer, other + choice)
            way = "Take shorter answers, such as letters, and list in the prompt what they stand for."
            if len(alone) == 1 and alone[0] != unknown:
                way = f"As {other + choice!r} it is one: pass prefix={other!r}, and let the prompts end accordingly."
            what = f"{len(ids)} tokens" if len(ids) != 1 else f"unknown ({getattr(tokenizer, 'unk_token', '')})"
            raise ConfigError(
                f"The answer {prefix + choice!r} is {what} of {type(tokenizer).__name__}, {ids[:8]}; one known token "
                f"is needed, for its logit is read at the prompt's last token. {way}"
            )
        found += ids
    if len(set(found)) != len(found):
        raise ConfigError(
            f"Two of the answers {list(choices)} are one token of {type(tokenizer).__name__}, which has no other "
            f"spelling for them: {found}. Take answers that differ in their first letter."
        )
    return found


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids


def require_decoder_tokens(head: str, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Raise :class:`DataError` where an encoder–decoder has no tokens to answer behind."""
    if has_decoder(backbone) and not any(name in inputs for name in TARGETS):
        start = getattr(getattr(backbone, "config", None), "decoder_start_token_id", None)
        raise DataError(
            f"{head} reads the logits of the decoder of {type(backbone).__name__}, and the batch has no "
            f"decoder_input_ids (B, T). To answer at its first token pass inputs['decoder_input_ids'] = "
            f"torch.full((B, 1), config.decoder_start_token_id), here {start}."
        )


def require_answer_mask(name: str, mask: Tensor, count: int, targets: Any) -> None:
    """Raise :class:`DataError` unless ``mask`` (B, K) leaves each example a choice, and its target among them."""
    if mask.dim() != 2 or mask.shape[1] != count:
        raise DataError(
            f"inputs[{name!r}] has shape {tuple(mask.shape)} and must be (B, {count}): True for each answer that an "
            "example has, in the order of the head's answers."
        )
    chosen = mask.bool()

    def explain() -> DataError:
        return DataError(
            f"Rows {(~chosen.any(1)).nonzero().flatten().tolist()[:8]} of inputs[{name!r}] have no answer to choose "
            "from. Mark those that are allowed by True."
        )

    refuse_where(~chosen.any(1), explain)
    if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.shape == mask.shape[:1]:
        inside = (targets >= 0) & (targets < count)  # others are refused by the likelihood
        outside = inside & ~chosen.gather(1, torch.where(inside, targets, 0).long()[:, None])[:, 0]

        def explain_targets() -> DataError:
            return DataError(
                f"The targets of rows {outside.nonzero().flatten().tolist()[:8]} are answers that inputs[{name!r}] "
                "rules out. Targets count the head's answers from 0, masked ones too."
            )

        refuse_where(outside, explain_targets)


def require_next_token(head: str, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless the likelihood is over the words of a text."""
    if not isinstance(likelihood, NextToken):
        raise ConfigError(
            f"{head} gives logits over a whole vocabulary at every token, and {type(likelihood).__name__} has another "
            "task. Take NextToken(vocab_size); for one answer per example take the head AnswerTokens."
        )


def require_vocabulary(size: int, backbone: nn.Module) -> None:
    """Raise :class:`ConfigError` unless the output layer of ``backbone`` has ``size`` words."""
    own = vocabulary_size(backbone)
    if own != size:
        raise ConfigError(
            f"NextToken has a vocabulary of {size} and the output layer of {type(backbone).__name__} has {own} words, "
            f"some of which the tokenizer may not use. Take NextToken({own})."
        )


def require_following(labels: Tensor, mask: Tensor | None) -> None:
    """Raise :class:`DataError` for texts of which no labelled token follows another: a causal model predicts none."""
    scored = labels[:, 1:] != IGNORED
    if mask is not None and mask.shape == labels.shape:
        scored = scored & mask[:, 1:] & mask[:, :-1]
    empty = ~scored.any(1)

    def explain() -> DataError:
        return DataError(
            f"No labelled token of rows {empty.nonzero().flatten().tolist()[:8]} can be predicted: the first token of "
            "a text follows none, and padding does not count. Do labels stand at the tokens themselves, not shifted, "
            "and are they padded on the same side as input_ids?"
        )

    refuse_where(empty, explain)


def require_path(model: str, own: Tensor, found: Tensor) -> None:
    """Raise :class:`ConfigError` unless logits of hidden states alone are those that the model has computed itself."""
    near = (own.float() - found.float()).abs() <= 1e-3 + 0.02 * own.float().abs()
    near = near | ~own.isfinite()  # numbers that are none are refused where they are looked at, with their cause

    def explain() -> ConfigError:
        return ConfigError(
            f"{model} makes its logits of more than its last hidden states: they differ by "
            f"{float((own.float() - found.float()).abs().max()):.3g}. Take LanguageModelHead(recompute=False)."
        )

    refuse_where(~near, explain)
