"""Several encoders, each with plain LoRA, whose pooled outputs are concatenated for the head."""

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

    Args:
        backbone: an ``nn.ModuleDict`` of encoders that return ``last_hidden_state``; changed in place.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        streams: encoder → :class:`StreamPooling`, or one for all.
        head_width: hidden units of a second linear layer before the outputs; None means one layer.
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
    """

    structure: ClassVar[str] = "concat_lora"
    tags: ClassVar[bool] = False
    two_sided: ClassVar[bool] = True
    least: ClassVar[int] = 1

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        streams: Mapping[str, StreamPooling | str] | StreamPooling | str = StreamPooling.MASKED_MEAN,
        head_width: int | None = None,
        **options: Any,
    ) -> None:
        encoders = require_encoders(backbone, self.least, type(self).__name__)
        if head_width is not None:
            whole_number("head_width", head_width)
        self.head_width, self.streams = head_width, _read_streams(streams, encoders)
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

    def default_head(self, pooling: Pooling | str | None) -> Head:
        if self.head_width is None:
            return LinearHead(pooling)
        return TwoLayerHead(self.head_width, relu=False, pooling=pooling)

    def require_fitting(self, head: Head, likelihood: Likelihood) -> None:
        super().require_fitting(head, likelihood)
        check_streams_head(self, head, self.head_width)

    def feature_width(self, backbone: nn.Module) -> int:
        return sum(hidden_width(encoder) for encoder in backbone.children())

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows d"]:
        inputs = EncoderInputs.split(batch, self.modalities, folds)
        hidden = self.run_encoders(inputs)
        features: list[Tensor] = []
        for name, pooling in self.streams.items():
            if name in hidden:
                pooled = pooling(hidden[name], inputs.mask_of(name, hidden[name])).float()
                features.append(inputs.or_null(name, pooled, self.null[name]))
            else:
                features.append(self.null[name].expand(inputs.rows, -1))
        return torch.cat(features, -1)

    def withholdable(self, batch: Batch) -> list[str]:
        """Name the encoders that have inputs in ``batch``."""
        given = {key.partition(".")[0] for key in batch.inputs}
        return [name for name in self.modalities if name in given]

    def withhold(self, batch: Batch, *modalities: str) -> Batch:
        """Return ``batch`` with ``<encoder>.present`` False for all examples; every encoder may be withheld at once."""
        require_withholdable(modalities, self.withholdable(batch))
        absent = torch.zeros(batch.size, dtype=torch.bool, device=batch.ids.device)
        return replace(batch, inputs={**batch.inputs, **{f"{name}.present": absent for name in modalities}})

    def run_encoders(self, inputs: EncoderInputs) -> dict[str, Float[Tensor, "rows T d"]]:
        """Return the last hidden states of every encoder that has inputs."""
        encoders = {name: self.backbone.get_submodule(name) for name in inputs.calls}
        return {name: last_hidden_state(net(**inputs.calls[name]), net) for name, net in encoders.items()}

    def config(self) -> dict[str, Any]:
        streams = {name: pooling.value for name, pooling in self.streams.items()}
        return super().config() | {"streams": streams, "head_width": self.head_width}


def _read_streams(
    streams: Mapping[str, StreamPooling | str] | StreamPooling | str, encoders: nn.ModuleDict
) -> dict[str, StreamPooling]:
    if isinstance(streams, str):
        return dict.fromkeys(encoders, choice(StreamPooling, "stream pooling", streams))
    require_every_stream(streams, encoders)
    return {name: choice(StreamPooling, "stream pooling", streams[name]) for name in encoders}
