"""All logits of a language model, for the words of a text."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import current_pass, running
from bayes_adapters.backbones.language_models import has_decoder, last_place
from bayes_adapters.data.batch import Batch
from bayes_adapters.distributions import TokenLogits
from bayes_adapters.errors import true_or_false
from bayes_adapters.heads._checks import require_logits
from bayes_adapters.heads._language_checks import (
    require_decoder_tokens,
    require_following,
    require_language_model,
    require_next_token,
    require_path,
    require_vocabulary,
)
from bayes_adapters.heads.head import BackboneOutput, Head
from bayes_adapters.heads.output_path import OutputPath, output_needs_all
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.likelihoods import Likelihood


class LanguageModelHead(Head):
    """``f_t``: the logits of the backbone's own output layer at every token, for the likelihood ``NextToken``.

    The backbone is a language model (``AutoModelForCausalLM``, ``AutoModelForSeq2SeqLM``). The head has no parameters:
    the output layer is a part of the frozen backbone, with its scaling, caps and bias, and may be adapted like any
    layer. What reaches the likelihood are hidden states and the model's own way from these to logits
    (:class:`bayes_adapters.distributions.TokenLogits`), which is taken for some tokens at a time. Where the model's
    code does not allow that, as OPT's, or where an adapted output layer has a draw for each token, its logits are taken
    as they come.

    Args:
        recompute: False takes the logits of all tokens as they come, one tensor S·B × T × V.

    Raises:
        ConfigError: the backbone is no language model, the likelihood is not ``NextToken``, or its vocabulary has
            another size than the output layer; or the structure changes the backbone's output.
        DataError: of a batch: an encoder–decoder without ``decoder_input_ids``, or a text of which no labelled token
            follows another.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from bayes_adapters import Batch, predict
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.likelihoods import NextToken
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = LlamaConfig(
    ...     vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    ... )
    >>> backbone = LlamaForCausalLM(tiny).eval()
    >>> model = StochasticDown(backbone, NextToken(20), targets=["q_proj"], num_data=2, head=LanguageModelHead())
    >>> ids = torch.randint(20, (2, 5))
    >>> found = predict(model, MeanField(model), Batch({"input_ids": ids}, targets=ids), num_samples=4)
    >>> found.epistemic.shape, found.log_density.shape, found.scored[0].tolist()
    (torch.Size([2, 5]), torch.Size([2]), [False, True, True, True, True])
    """

    name: ClassVar[str] = "language_model"

    def __init__(self, recompute: bool = True) -> None:
        super().__init__(Pooling.NONE)
        true_or_false("recompute", recompute)
        self.recompute = recompute
        self._size = 0
        self._path: OutputPath | None = None

    def suit(self, likelihood: Likelihood) -> None:
        require_next_token(type(self).__name__, likelihood)
        self._size = likelihood.num_outputs

    def suit_backbone(self, backbone: nn.Module, width: int) -> None:
        require_language_model(type(self).__name__, backbone, width)
        require_vocabulary(self._size, backbone)
        self._path = OutputPath.of(backbone) if self.recompute else None

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Nothing is trained."""

    def accept(self, batch: Batch) -> None:
        super().accept(batch)
        if isinstance(batch.targets, Tensor) and not has_tokens_of_decoder(batch):
            require_following(batch.targets, batch.token_mask)

    def asks(self, backbone: nn.Module, batch: Batch) -> dict[str, Any]:
        require_decoder_tokens(type(self).__name__, backbone, batch.inputs)
        return last_place(backbone) if self._chunked(backbone) else {}

    def listens(self, backbone: nn.Module) -> tuple[str, ...]:
        return (self._path.source,) if self._path is not None and self._chunked(backbone) else ()

    def read(self, output: BackboneOutput) -> TokenLogits:
        """Return the logits of all rows, some of which are computed when they are asked for."""
        logits, backbone = output.value.logits, output.backbone
        shift = 0 if has_decoder(backbone) else 1
        if self._path is None or self._path.source not in output.heard:
            require_logits(type(backbone).__name__, logits, True, len(logits))
            return TokenLogits.of(logits, shift, (len(logits),))
        path, forward_pass = self._path, current_pass()

        def project(hidden: Tensor) -> Tensor:
            with nullcontext() if forward_pass is None else running(forward_pass):
                return path.logits(backbone, hidden)

        hidden = output.heard[path.source].last_hidden_state
        if not backbone.training:
            require_path(type(backbone).__name__, logits[:, -1:], project(hidden[:, -1:].detach()))
        return TokenLogits(hidden, project, self._size, shift, (len(hidden),))

    def forward(self, features: TokenLogits) -> TokenLogits:
        return features

    def config(self) -> dict[str, Any]:
        return {"recompute": self.recompute}

    def _chunked(self, backbone: nn.Module) -> bool:
        return self._path is not None and not output_needs_all(backbone, current_pass())


def has_tokens_of_decoder(batch: Batch) -> bool:
    """Whether labels are what a decoder predicts, one for each token that it reads."""
    return "decoder_input_ids" in batch.inputs or "decoder_inputs_embeds" in batch.inputs
