"""Several encoders in lock-step, each adapted by what the others hear or see at the same depth (CoLA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import permutations
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bayes_adapters import lockstep
from bayes_adapters.batch import Batch
from bayes_adapters.blocks import Block, Blocks, DepthMap, Stage, depth_map, describe_blocks
from bayes_adapters.errors import ConfigError, DataError, choice
from bayes_adapters.forward_pass import ForwardPass, current_pass
from bayes_adapters.inter_path import InterPath
from bayes_adapters.layer import AdaptedLinear, adapted_layers, kaiming, remove
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.lockstep import Tap
from bayes_adapters.model import AdapterModel, Pooling, fold, hidden_width
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


class DescriptorPooling(StrEnum):
    """How a stream (rows, T, d) becomes the descriptor (rows, d) that other encoders see."""

    CLS = "cls"
    """The first position."""
    MEAN = "mean"
    """The mean over all positions, padding included (CoLA's text side)."""
    MASKED_MEAN = "masked_mean"
    """The mean over real positions."""


_STAGES = {
    Schedule.UNIFORM: (Stage.INPUT,),
    Schedule.MODULE: (Stage.INPUT, Stage.FEED_FORWARD),
    Schedule.PROGRESSIVE: (Stage.INPUT, Stage.CONTEXT, Stage.FEED_FORWARD),
}


class CoLA(AdapterModel):
    """``h = W₀ x + (α/r) B_L A_L x + Σ_c λ_c B_C Φ(x̄_c) A_C x`` in all six linears of every paired block.

    The sum runs over the other encoders c that have a block paired with this one; x̄_c is one vector an example, pooled
    from encoder c at the same stage (see :class:`Schedule`). Blocks without a partner get the first path only. Sites:
    ``cross.<layer path>`` (with more than two encoders ``cross.<layer path>.<partner>``), one Φ an example. The head
    sees the encoders' pooled outputs, concatenated. The paper's Φ is the guide ``Hypernetwork``, a point mass, trained
    with KL weight 0; any other guide of these sites is a Bayesian CoLA.

    A batch's inputs are named ``<encoder>.<argument>``, as in ``text.input_ids``; ``<encoder>.token_mask`` (B, T)
    serves pooling only. An encoder none of whose inputs are in the batch is missing for the whole batch, one whose
    ``<encoder>.present`` (B,) is False for that example: descriptor and features are then learned null vectors.

    Source: Suharitdamrong et al. 2026, arXiv 2604.03314, and its released code (r = 16, α = 8, λ 0.5 for vision and
    language, 0.1 for audio and vision). More than two encoders, ``spread`` and missing modalities are this library's.

    Args:
        backbone: an ``nn.ModuleDict`` of two or more encoders that return ``last_hidden_state``; changed in place.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        blocks: encoder → its :class:`Blocks`, for encoders that ``describe_blocks`` does not know.
        cross_rank: r_C; None means ``rank``.
        gain: initial λ.
        schedule, share: see :class:`Schedule`, :class:`Sharing`.
        descriptor: encoder → :class:`DescriptorPooling`, or one for all.
        depths: how blocks are paired, see :func:`bayes_adapters.blocks.depth_map`.
        prior: of Φ; None means N(0, 1), the scale at which the hypernetwork's layer norm starts.
        head_width: hidden units of a second linear layer before the outputs (AVE: 512); None means one layer.
        targets: which of the blocks' linears are adapted; None means all six.
        **options: ``rank``, ``alpha`` and ``dropout`` of :class:`AdapterModel`.

    Raises:
        ConfigError: fewer than two encoders, an encoder whose blocks are unknown, depths that do not fit, shared
            matrices of unequal ranks, or a backbone in which two encoders are one module.
    """

    structure: ClassVar[str] = "cola"

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
        descriptor: Mapping[str, DescriptorPooling | str] | DescriptorPooling | str = DescriptorPooling.MASKED_MEAN,
        depths: DepthMap | str = DepthMap.SAME,
        prior: PriorLike | None = None,
        head_width: int | None = None,
        rank: int = 16,
        alpha: float = 8.0,
        targets: Targets | str | Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(backbone, nn.ModuleDict) or len(backbone) < 2 or len({id(m) for m in backbone.values()}) < 2:
            raise ConfigError(
                "CoLA adapts two or more encoders to each other: pass backbone=nn.ModuleDict({'text': ..., 'audio': "
                f"...}}) with different modules; got {type(backbone).__name__}."
            )
        self.schedule, self.share = choice(Schedule, "schedule", schedule), choice(Sharing, "share", share)
        self.depths, self.gain, self.head_width = choice(DepthMap, "depth map", depths), gain, head_width
        self.cross_rank = rank if cross_rank is None else cross_rank
        if self.share is not Sharing.NONE and self.cross_rank != rank:
            raise ConfigError(f"share={self.share.value!r} needs cross_rank = rank; got {self.cross_rank} and {rank}.")
        given = _read_blocks(blocks or {}, backbone)
        self.blocks = {name: given.get(name) or describe_blocks(encoder) for name, encoder in backbone.items()}
        self.descriptor = _descriptors(descriptor, backbone)
        self.pairs = _pair(self.blocks, self.depths)
        if targets is None:
            linears = [f"{n}.{path}" for n, own in self.blocks.items() for block in own for path in block.linears]
            targets = linears
        super().__init__(backbone, likelihood, targets=targets, rank=rank, alpha=alpha, **options)
        try:
            self._connect(prior)
        except BaseException:
            remove(backbone)
            raise

    def _connect(self, prior: PriorLike | None) -> None:
        """Put the inter-modal paths into the adapted layers and make their sites."""
        encoders: nn.ModuleDict = self.backbone  # type: ignore[assignment]
        device = next(self.backbone.parameters()).device
        layers, many = adapted_layers(self.backbone), len(encoders) > 2
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
        widths = {name: hidden_width(encoder) for name, encoder in encoders.items()}
        self.null = nn.ParameterDict({name: nn.Parameter(torch.zeros(2, width)) for name, width in widths.items()})
        self.to(device)

    def _inter_path(self, layer: AdaptedLinear, site: Site, slot: str) -> InterPath:
        d_in, d_out = linear_size(layer.base_layer)
        down, up = layer.lora_A, layer.lora_B
        if down is None or up is None or self.share not in (Sharing.A, Sharing.ALL):
            down = nn.Parameter(kaiming(self.cross_rank, d_in))
        if up is None or self.share not in (Sharing.B, Sharing.ALL):
            up = nn.Parameter(torch.zeros(d_out, self.cross_rank))
        return InterPath(site, down, up, self.gain, slot)

    def feature_width(self, backbone: nn.Module) -> int:
        return sum(hidden_width(encoder) for encoder in backbone.children())

    def build_head(self, width: int) -> nn.Module:
        outputs = self.likelihood.num_outputs
        if self.head_width is None:
            return nn.Linear(width, outputs)
        return nn.Sequential(nn.Linear(width, self.head_width), nn.Linear(self.head_width, outputs))

    def descriptor_width(self, site: Site) -> int:
        return hidden_width(self.backbone.get_submodule(site.source))

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows d"]:
        calls, masks, present = self._calls(batch, folds)
        forward_pass = current_pass()
        if forward_pass is None:
            raise ConfigError("CoLA.encode runs inside the model only; call the model, the guide or predict().")
        rows = batch.size * folds
        for name, source, _, _ in self.pairs:
            if source not in calls:
                forward_pass.scratch[_slot(name, source)] = self.null[source][0].expand(rows, -1)
        encoders = {name: self.backbone.get_submodule(name) for name in calls}

        def exchange(_step: int, streams: dict[str, Tensor]) -> dict[str, Tensor]:
            self._refresh(streams, rows, masks, present, forward_pass)
            return {}

        taps = {name: self._taps(name) for name in calls}
        outputs = lockstep.run(encoders, calls, taps, exchange)
        features = []
        for name in self.blocks:
            if name not in outputs:
                features.append(self.null[name][1].expand(rows, -1))
                continue
            pooled = self._pool(name, outputs[name].last_hidden_state, masks.get(name), rows)
            features.append(_or_null(pooled, present.get(name), self.null[name][1]))
        return torch.cat([f.float() for f in features], -1)

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

    def _refresh(
        self,
        streams: Mapping[str, Tensor],
        rows: int,
        masks: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        forward_pass: ForwardPass,
    ) -> None:
        for source, stream in streams.items():
            descriptor = self._pool(source, stream, masks.get(source), rows).float()
            descriptor = _or_null(descriptor, present.get(source), self.null[source][0])
            for name in self.blocks:
                if name != source:
                    forward_pass.scratch[_slot(name, source)] = descriptor

    def _pool(self, name: str, stream: Tensor, mask: Tensor | None, rows: int) -> Float[Tensor, "rows d"]:
        # windowed attention sees (rows · windows, T, d), the windows of an example side by side
        stream = stream.reshape(rows, -1, stream.shape[-1])
        kind = self.descriptor[name]
        if kind is DescriptorPooling.CLS:
            return stream[:, 0]
        if kind is DescriptorPooling.MEAN or mask is None:
            return stream.mean(1)
        if mask.shape != stream.shape[:2]:
            raise DataError(
                f"The mask of {name!r} has shape {tuple(mask.shape)} and its stream {tuple(stream.shape[:2])}. If the "
                f"encoder changes the length, pass a mask of the new length as {name}.token_mask."
            )
        return Pooling.MEAN(stream, mask)

    def _calls(
        self, batch: Batch, folds: int
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Bool[Tensor, "rows T"]], dict[str, Bool[Tensor, "rows"]]]:
        calls: dict[str, dict[str, Tensor]] = {}
        masks: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        for key, value in batch.inputs.items():
            name, _, argument = key.partition(".")
            if name not in self.blocks or not argument:
                raise DataError(
                    f"The input {key!r} belongs to no encoder; inputs are named <encoder>.<argument> with an encoder "
                    f"of {sorted(self.blocks)}, for example {next(iter(self.blocks))}.input_ids."
                )
            folded = fold(value, folds)
            if argument == "present":
                present[name] = folded.bool()
            elif argument == "token_mask":
                masks[name] = folded.bool()
            else:
                calls.setdefault(name, {})[argument] = folded
                if argument == "attention_mask":
                    masks.setdefault(name, folded.bool())
        if not calls:
            raise DataError(f"The batch has inputs of none of the encoders {sorted(self.blocks)}.")
        return calls, masks, present

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "blocks": {name: [vars(block) for block in own] for name, own in self.blocks.items()},
            "cross_rank": self.cross_rank,
            "gain": self.gain,
            "schedule": self.schedule.value,
            "share": self.share.value,
            "descriptor": {name: kind.value for name, kind in self.descriptor.items()},
            "depths": self.depths.value,
            "head_width": self.head_width,
        }


def _slot(name: str, source: str) -> str:
    return f"descriptor.{source}.for.{name}"


def _or_null(value: Float[Tensor, "rows d"], present: Tensor | None, null: Float[Tensor, "d"]) -> Tensor:
    return value if present is None else torch.where(present[:, None], value, null.to(value.dtype))


def _read_blocks(given: Mapping[str, Any], backbone: nn.ModuleDict) -> dict[str, Blocks]:
    unknown = [name for name in given if name not in backbone]
    if unknown:
        raise ConfigError(f"blocks names {unknown[0]!r}; the encoders are {sorted(backbone)}.")
    return {
        name: own if isinstance(own, Blocks) else Blocks(tuple(Block(**block) for block in own))
        for name, own in given.items()
    }


def _descriptors(
    descriptor: Mapping[str, DescriptorPooling | str] | DescriptorPooling | str, backbone: nn.ModuleDict
) -> dict[str, DescriptorPooling]:
    if isinstance(descriptor, str):
        return dict.fromkeys(backbone, choice(DescriptorPooling, "descriptor pooling", descriptor))
    if set(descriptor) != set(backbone):
        raise ConfigError(
            f"descriptor must name every encoder, {sorted(backbone)}, or be one pooling; got {sorted(descriptor)}."
        )
    return {name: choice(DescriptorPooling, "descriptor pooling", kind) for name, kind in descriptor.items()}


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
