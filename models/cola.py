"""Several encoders in lock-step, each adapted by what the others hear or see at the same depth (CoLA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import permutations
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import Descriptor
from bayes_adapters.adapters.installation import adapted_layers, restored_on_error
from bayes_adapters.adapters.linear import AdaptedLinear, kaiming
from bayes_adapters.adapters.targets import Targets, linear_size
from bayes_adapters.backbones.placement import place_beside
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.modalities._lockstep_checks import require_greenlet
from bayes_adapters.modalities.blocks import Blocks, Stage, blocks_of, stage_width
from bayes_adapters.modalities.depths import DepthMap, depth_map
from bayes_adapters.modalities.encoder_inputs import EncoderInputs, require_encoders
from bayes_adapters.modalities.inter_path import InterPath
from bayes_adapters.modalities.lockstep import Tap
from bayes_adapters.models._checks import check_gain
from bayes_adapters.models._encoder_checks import (
    require_layer_rank,
    require_no_padding,
    require_order,
    require_shared_rank,
    require_sites,
    require_whole_examples,
    running_pass,
)
from bayes_adapters.models._in_lockstep import in_lockstep
from bayes_adapters.models.concat_lora import ConcatLoRA, StreamPooling
from bayes_adapters.priors import Prior, PriorLike, zero_normal
from bayes_adapters.sites import Granularity, Part, Site


class Schedule(StrEnum):
    """Where in a block the descriptors x̄ are refreshed; each refresh is synchronous in all encoders."""

    UNIFORM = "uniform"
    """Once: the block's input serves all six linears."""
    MODULE = "module"
    """Twice: the block's input for query, key, value and output, the residual stream for the feed-forward part."""
    PROGRESSIVE = "progressive"
    """Three times: block input → query, key, value; attention context → output; residual stream → feed-forward."""


class Sharing(StrEnum):
    """Which matrices the intra- and the inter-modal path of a layer share."""

    NONE = "none"
    A = "A"
    B = "B"
    ALL = "all"


_STAGES = {
    Schedule.UNIFORM: (Stage.INPUT,),
    Schedule.MODULE: (Stage.INPUT, Stage.FEED_FORWARD),
    Schedule.PROGRESSIVE: (Stage.INPUT, Stage.CONTEXT, Stage.FEED_FORWARD),
}
_READ_BY = (Stage.INPUT, Stage.INPUT, Stage.INPUT, Stage.CONTEXT, Stage.FEED_FORWARD, Stage.FEED_FORWARD)
"""The stage at which each of a block's six linears would have its descriptor taken, were it refreshed there."""


class CoLA(ConcatLoRA):
    """``h = W₀ x + (α/r) B_L A_L x + Σ_c λ_c B_C Φ(x̄_c) A_C x`` in all six linears of every paired block.

    The sum runs over the other encoders c that have a block paired with this one; x̄_c is one vector per example, pooled
    from encoder c at the same stage (see :class:`Schedule`). Blocks without a partner get the first path only. Sites:
    ``cross.<layer path>`` (with more than two encoders ``cross.<layer path>.<partner>``), one Φ an example. Inputs,
    head and missing modalities are those of :class:`ConcatLoRA`; the descriptor of a missing modality is a learned null
    vector too, one for each width. The paper's Φ is the guide ``Hypernetwork``, a point mass, trained with KL weight
    0; any other guide of these sites is a Bayesian CoLA.

    An encoder may widen from stage to stage and attend within windows (Swin, Swin V2): a descriptor is as wide as the
    block it comes from, its pooling runs over all windows of an example, and these share one Φ. Such an encoder's
    tokens have no marks of their own, so it takes neither ``cls`` pooling nor a mask; and where it pads an image up to
    whole windows, the schedule ``progressive``, which would pool the padding, refuses the batch.

    ``dense`` gives one output per token or per segment, as in :class:`ConcatLoRA`; the descriptors stay one vector per
    example. With ``separate`` they are one per segment, and so is Φ, with one KL for each: each second of an example is
    a row of its own in all encoders, as in the paper's audio-visual events.

    Source: Suharitdamrong et al. 2026, arXiv 2604.03314, and its released code (r = 16, α = 8, λ 0.5 for vision and
    language, 0.1 for audio and vision). More than two encoders, ``spread`` and missing modalities are this library's.

    Args:
        backbone: an ``nn.ModuleDict`` of two or more encoders that return ``last_hidden_state``; changed in place.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        blocks: encoder → its :class:`Blocks`, for encoders that ``describe_blocks`` does not know.
        cross_rank: r_C; None means ``rank``.
        gain: initial λ.
        schedule, share: see :class:`Schedule`, :class:`Sharing`.
        streams: encoder → :class:`StreamPooling`, for its descriptors and its output, or one for all.
        depths: how blocks are paired, see :func:`bayes_adapters.modalities.depths.depth_map`.
        prior: of Φ; None means N(0, 1), the scale at which the hypernetwork's layer norm starts.
        targets: which of the blocks' linears are adapted; None means all six.
        **options: ``rank``, ``alpha`` and ``dropout`` of :class:`bayes_adapters.AdapterModel`; ``streams``,
            ``head_width`` (AVE: 512), ``dense``, ``separate`` and ``prefix_tokens`` of :class:`ConcatLoRA`.

    Raises:
        ConfigError: fewer than two encoders, an encoder whose blocks are unknown, depths that do not fit, shared
            matrices of unequal ranks, or a backbone in which two encoders are one module.
        MissingResourceError: greenlet, which the extra ``cola`` brings, is not installed.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = CoLA(encoders, Bernoulli(), rank=2)
    >>> len(model.sites), model.sites[0].name, model.sites[0].source
    (12, 'cross.question.encoder.layer.0.attention.self.query', 'answer')
    """

    structure: ClassVar[str] = "cola"
    two_sided: ClassVar[bool] = False
    least: ClassVar[int] = 2

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        blocks: Mapping[str, Blocks | Sequence[Mapping[str, str]]] | None = None,
        cross_rank: int | None = None,
        gain: float = 0.5,
        schedule: Schedule | str = Schedule.PROGRESSIVE,
        share: Sharing | str = Sharing.NONE,
        depths: DepthMap | str = DepthMap.SAME,
        prior: PriorLike | None = None,
        rank: int = 16,
        alpha: float = 8.0,
        targets: Targets | str | Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        require_greenlet(type(self).__name__)
        encoders = require_encoders(backbone, self.least, type(self).__name__)
        self.schedule, self.share = choice(Schedule, "schedule", schedule), choice(Sharing, "share", share)
        self.depths, self.gain = choice(DepthMap, "depths", depths), gain
        self.cross_rank = rank if cross_rank is None else cross_rank
        whole_number("cross_rank", self.cross_rank)
        check_gain(gain)
        require_shared_rank(self.share.value, self.cross_rank, rank)
        self.blocks = blocks_of(encoders, blocks)
        self.steps = _steps(self.blocks, self.depths)
        if targets is None:
            linears = [f"{n}.{path}" for n, own in self.blocks.items() for block in own for path in block.linears]
            targets = linears
        with restored_on_error(backbone):
            super().__init__(backbone, likelihood, targets=targets, rank=rank, alpha=alpha, **options)
            self._connect(prior)

    def _connect(self, prior: PriorLike | None) -> None:
        """Put the inter-modal paths into the adapted layers and make their sites."""
        require_whole_examples(self.backbone, self.blocks, self.streams)
        layers, many = adapted_layers(self.backbone), len(self.blocks) > 2
        grain = Granularity.TOKEN if self.separate else Granularity.SEQUENCE  # a draw per segment, or per example
        self._descriptor_width: dict[str, int] = {}
        for name, source, own, other in self.pairs:
            for path, stage in zip(self.blocks[name][own].linears, _READ_BY, strict=True):
                full = f"{name}.{path}"
                if full not in layers:
                    continue
                site_name = f"cross.{full}.{source}" if many else f"cross.{full}"
                shape = (self.cross_rank, self.cross_rank)
                site = Site(site_name, Part.CROSS, (full,), shape, grain, source)
                self.sites.append(site)
                refreshed = self._refreshed(stage)
                self._descriptor_width[site_name] = self._width(source, other, refreshed)
                slot = _slot(name, source, self._step(self.steps[name].index(own), refreshed))
                layers[full].inter[source] = inter = self._inter_path(layers[full], site, slot)
                place_beside(layers[full].base_layer, inter)
        require_sites(self.sites, self.blocks)
        self.prior = Prior(zero_normal(1.0) if prior is None else prior, self.sites)
        self.null_descriptor = nn.ParameterDict()
        self._null_key: dict[tuple[str, int, Stage], str] = {}
        for _, source, _, other in self.pairs:
            for stage in _STAGES[self.schedule]:
                width = self._width(source, other, stage)
                key = self._null_key[source, other, stage] = f"{source}-{width}"
                if key not in self.null_descriptor:
                    self.null_descriptor[key] = nn.Parameter(torch.zeros(width))
        place_beside(self.backbone, self.prior, self.null_descriptor)

    @property
    def pairs(self) -> list[tuple[str, str, int, int]]:
        """(encoder, source, its block, the source's block) for every ordered pair of encoders, by depth."""
        return [
            (name, source, self.steps[name][depth], self.steps[source][depth])
            for depth in range(len(next(iter(self.steps.values()))))
            for name, source in permutations(self.blocks, 2)
        ]

    def _refreshed(self, stage: Stage) -> Stage:
        """The last stage up to ``stage`` at which the schedule takes descriptors."""
        order = list(Stage)
        return [s for s in _STAGES[self.schedule] if order.index(s) <= order.index(stage)][-1]

    def _step(self, depth: int, stage: Stage) -> int:
        """The number of the exchange at a stage of a depth."""
        stages = _STAGES[self.schedule]
        return depth * len(stages) + stages.index(stage)

    def _width(self, name: str, block: int, stage: Stage) -> int:
        return stage_width(self.backbone.get_submodule(name), self.blocks[name][block], stage)

    def _inter_path(self, layer: AdaptedLinear, site: Site, slot: str) -> InterPath:
        require_layer_rank(self.share.value, self.cross_rank, layer.path, layer.rank)
        d_in, d_out = linear_size(layer.base_layer)
        down, up = layer.lora_A, layer.lora_B
        if down is None or up is None or self.share not in (Sharing.A, Sharing.ALL):
            down = nn.Parameter(kaiming(self.cross_rank, d_in))
        if up is None or self.share not in (Sharing.B, Sharing.ALL):
            up = nn.Parameter(torch.zeros(d_out, self.cross_rank))
        return InterPath(site, down, up, self.gain, slot)

    def descriptor_width(self, site: Site) -> int:
        return self._descriptor_width[site.name]

    def run_encoders(self, inputs: EncoderInputs) -> dict[str, Float[Tensor, "rows T d"]]:
        forward_pass = running_pass("CoLA's encoders run")
        stages = _STAGES[self.schedule]
        tokens: dict[str, int] = {}

        def exchange(step: int, streams: dict[str, Tensor]) -> dict[str, Tensor]:
            depth, number = divmod(step, len(stages))
            for source in self.blocks:
                null = self.null_descriptor[self._null_key[source, self.steps[source][depth], stages[number]]]
                descriptor = null.expand(inputs.rows, -1)
                if source in streams:
                    if stages[number] is Stage.INPUT:
                        tokens[source] = streams[source].numel() // descriptor.numel()
                    pooled = self._pooled(source, streams[source], inputs, tokens[source])
                    descriptor = inputs.or_null(source, pooled, null)
                for name in self.blocks:
                    if name != source:
                        present = inputs.present.get(name)
                        told, slot = Descriptor(descriptor, present), _slot(name, source, step)
                        forward_pass.descriptors[slot], forward_pass.severed[slot] = told, told.severed()
            return {}

        taps = {name: self._taps(name) for name in inputs.calls}
        return in_lockstep(forward_pass, self.backbone, inputs, taps, exchange)

    def _pooled(self, name: str, stream: Tensor, inputs: EncoderInputs, tokens: int) -> Float[Tensor, "rows d"]:
        """Pool a stream (rows · windows, T, d) whose block has ``tokens`` tokens per example at its input."""
        pooling, windows = self.streams[name], stream.shape[0] // inputs.rows
        stream = stream.reshape(inputs.rows, -1, stream.shape[-1])
        require_no_padding(name, stream.shape[1], tokens)
        require_order(name, windows, first=pooling is StreamPooling.CLS, masked=name in inputs.masks)
        return pooling(stream, inputs.mask_of(name, stream)).float()

    def _taps(self, name: str) -> list[Tap]:
        """Taps at every stage of every paired block; a pair's exchanges have the same step numbers in both encoders."""
        return [
            self.blocks[name][block].tap(stage, self._step(depth, stage))
            for depth, block in enumerate(self.steps[name])
            for stage in _STAGES[self.schedule]
        ]

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "blocks": {name: [vars(block) for block in own] for name, own in self.blocks.items()},
            "cross_rank": self.cross_rank,
            "gain": self.gain,
            "schedule": self.schedule.value,
            "share": self.share.value,
            "depths": self.depths.value,
        }


def _slot(name: str, source: str, step: int) -> str:
    return f"descriptor.{source}.for.{name}.{step}"


def _steps(blocks: Mapping[str, Blocks], kind: DepthMap) -> dict[str, list[int]]:
    """Encoder → its blocks that are paired, by the block of the shallowest encoder that they meet.

    With more than two encoders every one is paired with the shallowest, and so with each other: blocks that meet the
    same block of the shallowest encoder meet.
    """
    least = min(len(own) for own in blocks.values())
    return {name: [block for block, _ in depth_map(len(own), least, kind)] for name, own in blocks.items()}
