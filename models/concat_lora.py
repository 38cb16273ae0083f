"""Several encoders, each with plain LoRA, whose outputs are concatenated for the head: pooled, or per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bayes_adapters.adapters.targets import ALL_LINEAR
from bayes_adapters.backbones.hidden_states import hidden_width, last_hidden_state
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.heads import Head, LinearHead, Pooling, TwoLayerHead, TwoTowers
from bayes_adapters.inference._checks import require_withholdable
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.modalities.encoder_inputs import EncoderInputs, require_encoders
from bayes_adapters.models._dense import joined, read_dense
from bayes_adapters.models._dense_checks import refuse_segments, require_dense_effect
from bayes_adapters.models._encoder_checks import check_streams_head, require_every_stream


class StreamPooling(StrEnum):
    """How a stream of hidden states (rows, T, d) becomes one vector per example."""

    CLS = "cls"
    """The first real position."""
    MEAN = "mean"
    """The mean over all positions, padding included."""
    MASKED_MEAN = "masked_mean"
    """The mean over real positions."""

    def __call__(
        self, stream: Float[Tensor, "rows T d"], mask: Bool[Tensor, "rows T"] | None
    ) -> Float[Tensor, "rows d"]:
        """Pool; a mask of None means that every position is real."""
        if self is StreamPooling.CLS:
            return Pooling.CLS(stream, mask)
        return Pooling.MEAN(stream, mask if self is StreamPooling.MASKED_MEAN else None)


class ConcatLoRA(AdapterModel):
    """``f = W [pool(h¹) ; … ; pool(h^M)]``, every encoder adapted by plain LoRA; the encoders do not see each other.

    A batch's inputs are named ``<encoder>.<argument>``, as in ``text.input_ids`` (see
    :class:`bayes_adapters.modalities.encoder_inputs.EncoderInputs`). A modality that is missing, for the batch or for
    an example, has a learned null vector in the place of its pooled output.

    With ``dense`` there is one output, and one target, per token or per segment of time; the likelihood is then
    :class:`~bayes_adapters.likelihoods.Tagging`, alone or in ``Tasks``, or another with one target per token:

    * ``dense="image"``, an encoder's name: ``f_t = W [h_t ; pool(h^c) ; …]``, h_t its own hidden state at token t.
      Targets have shape (B, n), n the tokens that the encoder returns, −100 where one has no label: a ViT returns a
      class token before its patches. ``prefix_tokens=1`` leaves it out, of targets and predictions too. Padding, and
      all tokens of an example that lacks this encoder, have no target.
    * ``dense=10``, a number T of segments: ``f_s = W [mean of h¹ in s ; … ; mean of h^M in s]``, targets (B, T). Each
      encoder's real tokens, m of them, share the example's time equally: token k counts in segment s as much as
      [k/m, (k + 1)/m] and [s/T, (s + 1)/T] overlap. So encoders of other rates meet in time; T = 1 is the mean over
      real tokens. Where tokens have times of their own, ``<encoder>.segment``, (B, n) int64, says which segment each is
      in, −1 for none, and the mean is that of the segment's real tokens. A segment in which an encoder has none has its
      null vector. Class tokens are no time: mark them 0 in ``<encoder>.token_mask``, or −1 in ``<encoder>.segment``.
    * ``dense=10, separate=True``: every input has shape (B, 10, …), such as the frame and the spectrogram of each
      second, and the ten segments of an example run through the encoders as rows of their own: ``f_s = W [pool(h¹_s) ;
      … ; pool(h^M_s)]``. A modality may be missing in one of them, ``<encoder>.present`` (B, 10).

    Args:
        backbone: an ``nn.ModuleDict`` of encoders that return ``last_hidden_state``; changed in place.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        streams: encoder → :class:`StreamPooling`, or one for all; of outputs per token it pools the other encoders.
        head_width: hidden units of a second linear layer before the outputs; None means one layer.
        dense: what has outputs and targets: the tokens of the encoder of this name, or as many segments of time as this
            number; None means the example.
        separate: whether each segment runs through the encoders on its own.
        prefix_tokens: how many first tokens of the encoder ``dense`` are left out (ViT 1, DeiT 2, DINOv2 with registers
            5).
        **options: options of :class:`AdapterModel` that do not concern random parts or pooling; ``targets`` defaults
            to every linear layer.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = ConcatLoRA(encoders, Bernoulli(), rank=2)
    >>> inputs = {"question.input_ids": torch.tensor([[3, 5]]), "answer.input_ids": torch.tensor([[4, 2, 6]])}
    >>> model.modalities, model(Batch(inputs)).shape
    (['question', 'answer'], torch.Size([1, 1]))

    Labels of the answer's three words, in the light of the question:

    >>> from bayes_adapters import Tagging
    >>> tagger = ConcatLoRA(nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)}), Tagging(5),
    ...                     dense="answer", rank=2)
    >>> tagger(Batch(inputs, targets=torch.tensor([[4, -100, 0]]))).shape
    torch.Size([1, 3, 5])
    """

    structure: ClassVar[str] = "concat_lora"
    two_sided: ClassVar[bool] = True
    least: ClassVar[int] = 1

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        streams: Mapping[str, StreamPooling | str] | StreamPooling | str = StreamPooling.MASKED_MEAN,
        head_width: int | None = None,
        dense: str | int | None = None,
        separate: bool = False,
        prefix_tokens: int = 0,
        **options: Any,
    ) -> None:
        encoders = require_encoders(backbone, self.least, type(self).__name__)
        if head_width is not None:
            whole_number("head_width", head_width)
        self.head_width, self.streams = head_width, _read_streams(streams, encoders)
        self.dense, self._dense = dense, read_dense(dense, prefix_tokens, separate, list(encoders))
        self.separate, self.prefix_tokens = separate, prefix_tokens
        if getattr(likelihood, "two_sides", False) and options.get("head") is None:
            options["head"] = TwoTowers()
        super().__init__(backbone, likelihood, **({"targets": ALL_LINEAR} | options))
        device = next(self.backbone.parameters()).device
        self.null = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(hidden_width(m), device=device)) for name, m in encoders.items()}
        )

    @property
    def modalities(self) -> list[str]:
        """Names of the encoders."""
        return list(self.streams)

    @property
    def tags(self) -> bool:
        return self.dense is not None

    def default_head(self, pooling: Pooling | str | None) -> Head:
        if self.head_width is None:
            return LinearHead(pooling)
        return TwoLayerHead(self.head_width, relu=False, pooling=pooling)

    def require_fitting(self, head: Head, likelihood: Likelihood) -> None:
        require_dense_effect(type(self).__name__, self.dense, likelihood)
        super().require_fitting(head, likelihood)
        check_streams_head(self, head, self.head_width)

    def feature_width(self, backbone: nn.Module) -> int:
        return sum(hidden_width(encoder) for encoder in backbone.children())

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows *T d"]:
        inputs = self.inputs_of(batch, folds)
        hidden = self.run_encoders(inputs)
        return self.of_examples(joined([self.features_of(name, hidden.get(name), inputs) for name in self.streams]))

    @property
    def rows_per_example(self) -> int:
        return self.dense if self.separate and isinstance(self.dense, int) else 1

    def of_examples(self, features: Float[Tensor, "rows *T d"]) -> Float[Tensor, "examples *U d"]:
        """Return features with one row per example; those of segments that ran on their own become its outputs."""
        return features.unflatten(0, (-1, self.rows_per_example)) if self.separate else features

    def inputs_of(self, batch: Batch, folds: int) -> EncoderInputs:
        """Return what the encoders are called with; :class:`DataError` where tokens to label cannot be told."""
        each = self.rows_per_example if self.separate else None
        inputs = EncoderInputs.split(batch, self.modalities, folds, each)
        if self._dense is None:
            refuse_segments(inputs.segments, f"this {type(self).__name__} has one output per example")
        else:
            self._dense.require_inputs(inputs.calls, inputs.segments)
        return inputs

    def features_of(
        self, name: str, hidden: Float[Tensor, "rows n d"] | None, inputs: EncoderInputs
    ) -> Float[Tensor, "rows *T d"]:
        """Return what the head sees of one encoder; ``hidden`` is None where the batch has no input of it."""
        null = self.null[name]
        if self._dense is not None and self._dense.of(name):
            return self._dense.features(name, hidden, null, inputs)
        if hidden is None:
            return null.expand(inputs.rows, -1)
        return inputs.or_null(name, self.streams[name](hidden, inputs.mask_of(name, hidden)).float(), null)

    def output_mask(self, batch: Batch, outputs: int) -> Bool[Tensor, "B T"] | None:
        if self._dense is None or self.separate:
            return None
        return self._dense.real(EncoderInputs.split(batch, self.modalities, 1), outputs)

    def withholdable(self, batch: Batch) -> list[str]:
        """Name the encoders that have inputs in ``batch``, but the one whose tokens have the targets.

        Without its tokens there is nothing to answer, as there is nothing to run without a backbone's own input.
        """
        given = {key.partition(".")[0] for key in batch.inputs} - {str(self.dense)}
        return [name for name in self.modalities if name in given]

    def withhold(self, batch: Batch, *modalities: str) -> Batch:
        """Return ``batch`` with ``<encoder>.present`` False for all examples; all of them may be withheld at once."""
        require_withholdable(modalities, self.withholdable(batch))
        absent = torch.zeros(batch.size, dtype=torch.bool, device=batch.ids.device)
        return replace(batch, inputs={**batch.inputs, **{f"{name}.present": absent for name in modalities}})

    def run_encoders(self, inputs: EncoderInputs) -> dict[str, Float[Tensor, "rows T d"]]:
        """Return the last hidden states of every encoder that has inputs."""
        encoders = {name: self.backbone.get_submodule(name) for name in inputs.calls}
        return {name: last_hidden_state(net(**inputs.calls[name]), net) for name, net in encoders.items()}

    def config(self) -> dict[str, Any]:
        streams = {name: pooling.value for name, pooling in self.streams.items()}
        usual = {"dense": None, "separate": False, "prefix_tokens": 0}
        unusual = {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}
        return super().config() | {"streams": streams, "head_width": self.head_width} | unusual


def _read_streams(
    streams: Mapping[str, StreamPooling | str] | StreamPooling | str, encoders: nn.ModuleDict
) -> dict[str, StreamPooling]:
    if isinstance(streams, str):
        return dict.fromkeys(encoders, choice(StreamPooling, "stream pooling", streams))
    require_every_stream(streams, encoders)
    return {name: choice(StreamPooling, "stream pooling", streams[name]) for name in encoders}
