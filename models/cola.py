"""Several encoders in lock-step, each adapted by what the others hear or see at the same depth (CoLA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import permutations
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters import lockstep
from bayes_adapters.blocks import Blocks, Stage, blocks_of
from bayes_adapters.depths import DepthMap, depth_map
from bayes_adapters.encoder_inputs import EncoderInputs, require_encoders
from bayes_adapters.errors import ConfigError, choice, whole_number
from bayes_adapters.forward_pass import current_pass
from bayes_adapters.inter_path import InterPath
from bayes_adapters.layer import AdaptedLinear, adapted_layers, kaiming, restored_on_error
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.lockstep import Tap
from bayes_adapters.model_checks import hidden_width
from bayes_adapters.models.concat_lora import ConcatLoRA
from bayes_adapters.priors import Prior, PriorLike, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from bayes_adapters.targets import Targets, linear_size


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


class CoLA(ConcatLoRA):
    """``h = W₀ x + (α/r) B_L A_L x + Σ_c λ_c B_C Φ(x̄_c) A_C x`` in all six linears of every paired block.

    The sum runs over the other encoders c that have a block paired with this one; x̄_c is one vector an example, pooled
    from encoder c at the same stage (see :class:`Schedule`). Blocks without a partner get the first path only. Sites:
    ``cross.<layer path>`` (with more than two encoders ``cross.<layer path>.<partner>``), one Φ an example. Inputs,
    head and missing modalities are those of :class:`ConcatLoRA`; the descriptor of a missing modality is a learned null
    vector too. The paper's Φ is the guide ``Hypernetwork``, a point mass, trained
    with KL weight 0; any other guide of these sites is a Bayesian CoLA.

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
        depths: how blocks are paired, see :func:`bayes_adapters.depths.depth_map`.
        prior: of Φ; None means N(0, 1), the scale at which the hypernetwork's layer norm starts.
        targets: which of the blocks' linears are adapted; None means all six.
        **options: ``rank``, ``alpha`` and ``dropout`` of :class:`AdapterModel`; ``streams`` and ``head_width`` (AVE:
            512) of :class:`ConcatLoRA`.

    Raises:
        ConfigError: fewer than two encoders, an encoder whose blocks are unknown, depths that do not fit, shared
            matrices of unequal ranks, or a backbone in which two encoders are one module.
    """

    structure: ClassVar[str] = "cola"
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
        encoders = require_encoders(backbone, self.least, type(self).__name__)
        self.schedule, self.share = choice(Schedule, "schedule", schedule), choice(Sharing, "share", share)
        self.depths, self.gain = choice(DepthMap, "depth map", depths), gain
        self.cross_rank = rank if cross_rank is None else cross_rank
        whole_number("cross_rank", self.cross_rank)
        if not isinstance(gain, int | float) or not math.isfinite(gain):
            raise ConfigError(
                f"gain is the first value of λ and must be a finite number, for example 0.5; got {gain!r}."
            )
        if self.share is not Sharing.NONE and self.cross_rank != rank:
            raise ConfigError(f"share={self.share.value!r} needs cross_rank = rank; got {self.cross_rank} and {rank}.")
        self.blocks = blocks_of(encoders, blocks)
        self.pairs = _pair(self.blocks, self.depths)
        if targets is None:
            linears = [f"{n}.{path}" for n, own in self.blocks.items() for block in own for path in block.linears]
            targets = linears
        with restored_on_error(backbone):
            super().__init__(backbone, likelihood, targets=targets, rank=rank, alpha=alpha, **options)
            self._connect(prior)

    def _connect(self, prior: PriorLike | None) -> None:
        """Put the inter-modal paths into the adapted layers and make their sites."""
        device = next(self.backbone.parameters()).device
        layers, many = adapted_layers(self.backbone), len(self.blocks) > 2
        for name, source, own, _ in self.pairs:
            for path in self.blocks[name][own].linears:
                full = f"{name}.{path}"
                if full not in layers:
                    continue
                site_name = f"cross.{full}.{source}" if many else f"cross.{full}"
                shape = (self.cross_rank, self.cross_rank)
                site = Site(site_name, Part.CROSS, (full,), shape, Granularity.SEQUENCE, source)
                self.sites.append(site)
                layers[full].inter[source] = self._inter_path(layers[full], site, _slot(name, source))
        self.prior = Prior(zero_normal(1.0) if prior is None else prior, self.sites)
        widths = {name: hidden_width(encoder) for name, encoder in self.backbone.named_children()}
        self.null_descriptor = nn.ParameterDict({n: nn.Parameter(torch.zeros(width)) for n, width in widths.items()})
        self.to(device)

    def _inter_path(self, layer: AdaptedLinear, site: Site, slot: str) -> InterPath:
        d_in, d_out = linear_size(layer.base_layer)
        down, up = layer.lora_A, layer.lora_B
        if down is None or up is None or self.share not in (Sharing.A, Sharing.ALL):
            down = nn.Parameter(kaiming(self.cross_rank, d_in))
        if up is None or self.share not in (Sharing.B, Sharing.ALL):
            up = nn.Parameter(torch.zeros(d_out, self.cross_rank))
        return InterPath(site, down, up, self.gain, slot)

    def descriptor_width(self, site: Site) -> int:
        return hidden_width(self.backbone.get_submodule(site.source))

    def run_encoders(self, inputs: EncoderInputs) -> dict[str, Float[Tensor, "rows T d"]]:
        forward_pass = current_pass()
        if forward_pass is None:
            raise ConfigError("CoLA's encoders run inside the model only; call the model, the guide or predict().")
        scratch = forward_pass.scratch
        for name, source, _, _ in self.pairs:
            if source not in inputs.calls:
                scratch[_slot(name, source)] = self.null_descriptor[source].expand(inputs.rows, -1)
            if name in inputs.present:
                scratch[f"{_slot(name, source)}.kept"] = inputs.present[name]

        def exchange(_step: int, streams: dict[str, Tensor]) -> dict[str, Tensor]:
            for source, stream in streams.items():
                descriptor = self._descriptor(source, stream, inputs)
                scratch.update({_slot(name, source): descriptor for name in self.blocks if name != source})
            return {}

        encoders = {name: self.backbone.get_submodule(name) for name in inputs.calls}
        taps = {name: self._taps(name) for name in inputs.calls}
        outputs = lockstep.run(encoders, inputs.calls, taps, exchange)
        return {name: output.last_hidden_state for name, output in outputs.items()}

    def _descriptor(self, name: str, stream: Tensor, inputs: EncoderInputs) -> Float[Tensor, "rows d"]:
        # windowed attention sees (rows · windows, T, d), the windows of an example side by side
        stream = stream.reshape(inputs.rows, -1, stream.shape[-1])
        descriptor = self.streams[name](stream, inputs.mask_of(name, stream)).float()
        return inputs.or_null(name, descriptor, self.null_descriptor[name])

    def _taps(self, name: str) -> list[Tap]:
        """Taps at every stage of every paired block; a pair's exchanges have the same step numbers in both encoders."""
        stages, taps = _STAGES[self.schedule], []
        for block in sorted({own for n, _, own, _ in self.pairs if n == name}):
            depth = self._depth(name, block)
            for number, stage in enumerate(stages):
                taps.append(self.blocks[name][block].tap(stage, depth * len(stages) + number))
        return taps

    def _depth(self, name: str, block: int) -> int:
        """The number of the lock-step in which a paired block runs: its partner's block in the shallowest encoder."""
        shallow = min(self.blocks, key=lambda n: len(self.blocks[n]))
        if name == shallow:
            return block
        return next(other for n, source, own, other in self.pairs if (n, source, own) == (name, shallow, block))

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "blocks": {name: [vars(block) for block in own] for name, own in self.blocks.items()},
            "cross_rank": self.cross_rank,
            "gain": self.gain,
            "schedule": self.schedule.value,
            "share": self.share.value,
            "depths": self.depths.value,
        }


def _slot(name: str, source: str) -> str:
    return f"descriptor.{source}.for.{name}"


def _pair(blocks: Mapping[str, Blocks], kind: DepthMap) -> list[tuple[str, str, int, int]]:
    """(encoder, source, its block, the source's block) for every ordered pair of encoders.

    With more than two encoders every one is paired with the shallowest, and so with each other: blocks that meet the
    same block of the shallowest encoder meet.
    """
    shallow = min(blocks, key=lambda name: len(blocks[name]))
    rows = {
        name: {shallow_block: block for block, shallow_block in depth_map(len(own), len(blocks[shallow]), kind)}
        for name, own in blocks.items()
    }
    return [
        (name, source, rows[name][depth], rows[source][depth])
        for depth in range(len(blocks[shallow]))
        for name, source in permutations(blocks, 2)
    ]
