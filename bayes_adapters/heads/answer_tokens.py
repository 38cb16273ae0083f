"""A language model's own logits of a few answers, at the last token of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import current_pass
from bayes_adapters.backbones.language_models import KEEP, keeps, last_place
from bayes_adapters.data.batch import Batch
from bayes_adapters.heads._checks import require_logits
from bayes_adapters.heads._language_checks import (
    answer_ids,
    require_answer_mask,
    require_answers,
    require_classes,
    require_decoder_tokens,
    require_in_vocabulary,
    require_language_model,
)
from bayes_adapters.heads.head import BackboneOutput, Head
from bayes_adapters.heads.output_path import output_needs_all
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.likelihoods import Likelihood

ANSWER_MASK = "answer_mask"
"""The input (B, K), True for each answer that an example may have."""
_NEVER = -1e30
"""The logit of an answer that an example does not have: its probability is exactly 0, and everything is finite."""


class AnswerTokens(Head):
    """``f_k``: the logit of token ``a_k`` behind the prompt, for K answers; ``p = softmax(f)`` with ``Categorical(K)``.

    The backbone is a language model: ``AutoModelForCausalLM``, whose last real token is looked at, with padding on
    either side, or ``AutoModelForSeq2SeqLM``, of whose decoder's tokens it is the last. Logits are those of the model's
    own output path, with its scaling, caps and bias; where the family takes ``logits_to_keep``, only those of the
    positions that are read are computed. The head has no parameters. The output layer is a part of the frozen backbone
    and may be adapted like any layer, ``targets=["q_proj", "v_proj", "lm_head"]``; where its weight is that of the
    embedding, the embedding is left alone.

    An example with fewer answers says so in ``inputs["answer_mask"]``, shape (B, K), bool, which the backbone does not
    see. Others have probability 0; a target among them is refused.

    Args:
        answers: K ≥ 2 different token ids, shape (K,), in the order of the classes; :meth:`of` makes them of strings.

    Raises:
        ConfigError: the backbone is no language model, or has no such tokens; the likelihood has not K classes; or the
            structure changes the backbone's output.
        DataError: of a batch: an encoder–decoder without ``decoder_input_ids``, or a wrong ``answer_mask``.

    Source: Yang et al. 2023, arXiv 2308.13111, and later papers on Bayesian LoRA choose an answer in this way.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from bayes_adapters import Batch, Categorical, predict
    >>> from bayes_adapters.guides import Contextual
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = LlamaConfig(
    ...     vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> backbone = LlamaForCausalLM(tiny).eval()
    >>> model = StochasticCore(backbone, Categorical(3), targets=["q_proj", "v_proj"], head=AnswerTokens([4, 9, 2]))
    >>> inputs = {"input_ids": torch.randint(20, (2, 5)), "answer_mask": torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()}
    >>> found = predict(model, Contextual(model), Batch(inputs), num_samples=4)
    >>> found.probs.shape, float(found.probs[1, 1])
    (torch.Size([2, 3]), 0.0)
    """

    name: ClassVar[str] = "answer_tokens"
    own_inputs: ClassVar[tuple[str, ...]] = (ANSWER_MASK,)
    answers: Tensor

    def __init__(self, answers: Sequence[int] | Tensor) -> None:
        super().__init__(Pooling.LAST)
        self.ids = require_answers(answers)

    @classmethod
    def of(cls, tokenizer: Any, choices: Sequence[str], *, prefix: str = " ") -> AnswerTokens:
        """Return the head whose answers are the tokens of ``choices``, each of which has to be one.

        Args:
            tokenizer: of the backbone.
            choices: strings, in the order of the classes.
            prefix: what stands between the prompt and an answer. ``" "`` suits prompts that end in ``"Answer:"``, and
                tokenizers that join a word's space to it (GPT-2's, Llama 3's); ``""`` those that end in a space, a new
                line or a template's mark, and tokenizers that start every text with a space (Llama 2's, T5's).

        Raises:
            ConfigError: a choice is several tokens, or unknown, or the same token as another; the error says which
                prefix would do.
        """
        return cls(answer_ids(tokenizer, choices, prefix))

    def suit(self, likelihood: Likelihood) -> None:
        require_classes(type(self).__name__, len(self.ids), likelihood)

    def suit_backbone(self, backbone: nn.Module, width: int) -> None:
        require_language_model(type(self).__name__, backbone, width)
        require_in_vocabulary(self.ids, backbone)

    def build(self, width: int, likelihood: Likelihood) -> None:
        self.register_buffer("answers", torch.tensor(self.ids), persistent=False)

    def accept(self, batch: Batch) -> None:
        super().accept(batch)
        if ANSWER_MASK in batch.inputs:
            require_answer_mask(ANSWER_MASK, batch.inputs[ANSWER_MASK], len(self.ids), batch.targets)

    def asks(self, backbone: nn.Module, batch: Batch) -> dict[str, Any]:
        require_decoder_tokens(type(self).__name__, backbone, batch.inputs)
        how = keeps(backbone)
        if not how or output_needs_all(backbone, current_pass()):
            return {}
        mask = batch.token_mask
        if mask is None:
            return last_place(backbone)
        columns = last_tokens(mask).unique()
        return {KEEP: columns.tolist() if how == "index" else int(mask.shape[1] - columns[0])}

    def read(self, output: BackboneOutput) -> Float[Tensor, "rows K"]:
        """Return the answers' logits, float32."""
        logits, mask = output.value.logits, output.mask
        require_logits(type(output.backbone).__name__, logits, True, len(logits))
        last = logits.shape[1] - 1
        if mask is None:
            found = logits[:, last]
        else:
            places, kept = last_tokens(mask), output.asked.get(KEEP)
            if isinstance(kept, list):
                places = torch.searchsorted(places.new_tensor(kept), places)
            else:
                places = places + logits.shape[1] - mask.shape[1]
            found = logits[torch.arange(len(logits), device=logits.device), places]
        found = found.index_select(-1, self.answers).float()
        allowed = output.own.get(ANSWER_MASK)
        return found if allowed is None else found.masked_fill(~allowed.bool(), _NEVER)

    def forward(self, features: Float[Tensor, "rows K"]) -> Float[Tensor, "rows K"]:
        return features

    def config(self) -> dict[str, Any]:
        return {"answers": list(self.ids)}


def last_tokens(mask: Bool[Tensor, "rows T"]) -> Int[Tensor, " rows"]:
    """Return the position of each row's last real token.

    >>> last_tokens(torch.tensor([[True, True, False], [False, True, True]]))
    tensor([1, 2])
    """
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
