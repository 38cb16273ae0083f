"""Multiplicative low-rank fusion of any number of modalities behind frozen encoders (Wander)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bayes_adapters.adapters.installation import restored_on_error
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.backbones.placement import place_beside
from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.data.rows import fold
from bayes_adapters.errors import whole_number
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.modalities._lockstep_checks import require_greenlet
from bayes_adapters.modalities.blocks import Blocks, Stage, blocks_of, stage_width
from bayes_adapters.modalities.encoder_inputs import EncoderInputs, require_encoders
from bayes_adapters.modalities.lockstep import Tap
from bayes_adapters.models._checks import OF_ADAPTERS, check_depths, check_fusion, check_lengths, check_used
from bayes_adapters.models._dense import joined
from bayes_adapters.models._encoder_checks import running_pass
from bayes_adapters.models._in_lockstep import in_lockstep
from bayes_adapters.models.concat_lora import ConcatLoRA, StreamPooling
from bayes_adapters.models.multiplicative.factors import (
    CP,
    FusionFactors,
    FusionRule,
    ModalityFactors,
    Placement,
    Tokens,
)
from bayes_adapters.models.multiplicative.fusion import cp_fusion_pooled, cp_fusion_residual
from bayes_adapters.priors import Prior, PriorLike
from bayes_adapters.sites import Granularity, Part, Site


class Wander(ConcatLoRA):
    """``f = W mean_r( residual + g ∘ Π_m Z_m )`` over M ≥ 2 frozen encoders, of sequences of any length.

    The fusion is that of :mod:`bayes_adapters.models.multiplicative`, whose formulas hold here. Its factors F_m (R, r,
    d) and G_m (R, L_m, r) are global sample sites, ``factor.feature.<encoder>`` and ``factor.token.<encoder>`` (after
    every layer: with the depth before the encoder's name), one KL per data set. The paper's Wander is the guide
    ``Delta`` with KL weight 0; ``MeanField`` gives a Bayesian Wander, which no paper has. Everything else (W_m, b_m,
    the gate g, what stands in for a missing modality, the head) is deterministic. The gate starts at 0: at construction
    the fusion returns its residual, and its other tensors get gradient from the second step on.

    With ``dense``, see :class:`ConcatLoRA`, an output of token t sees ``[h_t ; mean_r(…)]``, and one of segment s
    ``[mean of h¹ in s ; … ; mean of h^M in s ; mean_r(…)]``. The r fused tokens are in no order of time: their mean, of
    the whole example, stands beside every output. After every layer tokens stay tokens, and nothing differs from
    :class:`ConcatLoRA`. With ``separate`` each segment is fused on its own, and its output sees no other.

    Source: Guo et al., AAAI 2025, arXiv 2412.08979, as its released code computes it; masks, lengths that vary, missing
    modalities, normalisation, the gate, fusion after every layer and random factors are this library's.

    Args:
        backbone: an ``nn.ModuleDict`` of two or more encoders that return ``last_hidden_state``; frozen.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        num_data: N, the size of the data set.
        lengths: encoder → L_m, rows of its token factor: about as many as its sequences have tokens, or fewer.
        fusion_rank: r.
        terms: R, terms of the CP decomposition.
        cp: ``"sum_of_products"`` or ``"product_of_sums"`` (as released).
        every_layer: fuse after every block rather than once after the last layer. Every encoder then needs the same
            depth and width, and the head sees the mean of each encoder's tokens; otherwise it sees the mean of the r
            fused ones.
        width: project every encoder's output to this width first; None needs encoders of one width.
        normalise: divide each Z_m by its root mean square, which keeps a product of many in range.
        prior: of the factors; None means Gaussians of mean 0 and the standard deviation at which each factor starts,
            1/√(r R) for F_m and 1/√(L_m R) for G_m.
        blocks: encoder → its :class:`Blocks`, for encoders that ``describe_blocks`` does not know.
        targets: linear layers to adapt by plain LoRA as well; None adapts none, as the paper.
        **options: ``head_width``, ``dense``, ``separate`` and ``prefix_tokens`` of :class:`ConcatLoRA`; with
            ``targets`` also ``rank``, ``alpha`` and ``dropout``, and with ``every_layer`` also ``streams``.

    Raises:
        ConfigError: fewer than two encoders, unequal widths or depths, a length missing, a size below 1, ``blocks`` or
            ``streams`` without ``every_layer``, or ``rank``, ``alpha`` or ``dropout`` without ``targets``.
        MissingResourceError: ``every_layer`` without greenlet, which the extra ``cola`` brings.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> lengths = {"question": 3, "answer": 4}
    >>> model = Wander(encoders, Bernoulli(), num_data=100, lengths=lengths, fusion_rank=2, terms=5)
    >>> [(site.name, site.event) for site in model.sites[:2]]
    [('factor.feature.question', (5, 2, 8)), ('factor.token.question', (5, 3, 2))]
    """

    structure: ClassVar[str] = "wander"
    two_sided: ClassVar[bool] = False
    least: ClassVar[int] = 2

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        num_data: int,
        lengths: Mapping[str, int],
        fusion_rank: int = 16,
        terms: int = 4,
        cp: CP | str = CP.SUM_OF_PRODUCTS,
        every_layer: bool = False,
        width: int | None = None,
        normalise: bool = True,
        prior: PriorLike | None = None,
        blocks: Mapping[str, Blocks | Sequence[Mapping[str, str]]] | None = None,
        targets: Any = None,
        **options: Any,
    ) -> None:
        placement = Placement.RESIDUAL if every_layer else Placement.POOLED
        self.rule = FusionRule(placement, cp, Tokens.INTERPOLATED, normalise)
        check_lengths(lengths, blocks, every_layer)
        if every_layer:
            require_greenlet(f"{type(self).__name__} after every layer")
        if width is not None:
            whole_number("width", width)
        self.every_layer, self.width, self.lengths = every_layer, width, dict(lengths)
        self.fusion_rank, self.terms = fusion_rank, terms
        encoders = require_encoders(backbone, self.least, type(self).__name__)
        self.blocks = blocks_of(encoders, blocks) if every_layer else {}
        with restored_on_error(backbone):
            super().__init__(backbone, likelihood, targets=targets, num_data=num_data, **options)
            self._fuse(num_data, prior)

    def _fuse(self, num_data: int, prior: PriorLike | None) -> None:
        """Make the fusion's parameters and its sites."""
        self.num_data = num_data
        if not self.every_layer:  # what stands in for a missing modality is a factor; but tokens are features
            self.null = nn.ParameterDict({name: self.null[name] for name in self._own_features})
        widths = {name: hidden_width(encoder) for name, encoder in self.backbone.named_children()}
        sizes = {"fusion_rank": self.fusion_rank, "terms": self.terms, "num_data": self.num_data}
        check_fusion(widths, self.lengths, sizes, self.width, self.every_layer)
        adapters = None if self.layers else {option: getattr(self, option) for option in OF_ADAPTERS}
        check_used({*self.streams.values()} == {StreamPooling.MASKED_MEAN}, adapters, self.every_layer)
        size = self.width or next(iter(widths.values()))
        wide = {
            name: [stage_width(self.backbone.get_submodule(name), block, Stage.OUTPUT) for block in own]
            for name, own in self.blocks.items()
        }
        check_depths(wide, size)
        self.depths = range(len(next(iter(wide.values())))) if self.every_layer else range(1)
        self.project = nn.ModuleDict({name: nn.Linear(w, size) for name, w in widths.items()} if self.width else {})
        self.down, self.bias, self.absent = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for depth in self.depths:
            for name in widths:
                key, bound = self._key(depth, name, "-"), 1 / math.sqrt(size)
                self.down[key] = nn.Parameter(torch.empty(self.fusion_rank, size).uniform_(-bound, bound))
                self.bias[key] = nn.Parameter(torch.empty(self.fusion_rank).uniform_(-bound, bound))
                self.absent[key] = nn.Parameter(torch.ones(size))
        rows = len(widths) if self.every_layer else 1
        self.gate = nn.ParameterList([torch.zeros(rows, size) for _ in self.depths])
        self.sites += [site for depth in self.depths for name in widths for site in self._sites(depth, name, size)]
        self.prior = Prior(self._start_normal if prior is None else prior, self.sites)
        place_beside(self.backbone, self.project, self.down, self.bias, self.absent, self.gate, self.prior)

    def _key(self, depth: int, name: str, separator: str) -> str:
        return f"{depth}{separator}{name}" if self.every_layer else name

    def _sites(self, depth: int, name: str, size: int) -> list[Site]:
        key = self._key(depth, name, ".")
        shapes = {
            f"feature.{key}": (self.terms, self.fusion_rank, size),
            f"token.{key}": (self.terms, self.lengths[name], self.fusion_rank),
        }
        return [Site(f"factor.{k}", Part.FACTOR, (k,), shape, Granularity.GLOBAL) for k, shape in shapes.items()]

    def _start_normal(self, _name: str, shape: tuple[int, ...]) -> Any:
        # F_m has shape (1, R, r, d), G_m (1, R, L_m, r): both sum over the product of the two sizes in the middle
        return dist.Normal(torch.tensor(0.0), torch.tensor(1 / math.sqrt(shape[1] * shape[2])))

    def feature_width(self, backbone: nn.Module) -> int:
        if self.every_layer:
            return super().feature_width(backbone)
        fused = self.width or hidden_width(next(iter(backbone.children())))
        return fused + sum(hidden_width(backbone.get_submodule(name)) for name in self._own_features)

    @property
    def _own_features(self) -> list[str]:
        """Encoders whose tokens or segments the head sees beside the fused tokens."""
        return [] if self._dense is None else [name for name in self.modalities if self._dense.of(name)]

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows *T d"]:
        if self.every_layer:
            return super().encode(batch, folds)
        # encoders without adapters are the same for every draw: they run once, and their outputs are repeated
        once = not self.layers
        inputs = self.inputs_of(batch, 1 if once else folds)
        hidden = self.run_encoders(inputs)
        frames = {name: self._frames(name, value, inputs) for name, value in hidden.items()}
        if once:
            frames = {n: Frames(fold(f.values, folds), fold(f.mask, folds)) for n, f in frames.items()}
        projected = {n: Frames(self.project[n](f.values), f.mask) if self.project else f for n, f in frames.items()}
        fused = cp_fusion_pooled(projected, self._factors(0), self.rule).values.float().mean(1)
        own = [self.features_of(name, hidden.get(name), inputs) for name in self._own_features]
        return self.of_examples(joined([*(fold(each, folds) if once else each for each in own), fused]))

    def run_encoders(self, inputs: EncoderInputs) -> dict[str, Float[Tensor, "rows T d"]]:
        if not self.every_layer:
            with torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.layers)):
                return super().run_encoders(inputs)

        def exchange(step: int, streams: dict[str, Tensor]) -> dict[str, Tensor]:
            frames = {name: self._frames(name, stream, inputs) for name, stream in streams.items()}
            fused = cp_fusion_residual(frames, self._factors(step), self.rule)
            return {name: value.values for name, value in fused.items()}

        taps: dict[str, list[Tap]] = {
            name: [block.tap(Stage.OUTPUT, depth) for depth, block in enumerate(self.blocks[name])]
            for name in inputs.calls
        }
        return in_lockstep(running_pass("Wander's encoders run"), self.backbone, inputs, taps, exchange)

    def _frames(self, name: str, stream: Tensor, inputs: EncoderInputs) -> Frames:
        """The real tokens of one modality; those of an example that lacks it are all masked."""
        mask: Bool[Tensor, "rows T"] | None = inputs.mask_of(name, stream)
        if mask is None:
            mask = torch.ones(stream.shape[:2], dtype=torch.bool, device=stream.device)
        if name in inputs.present:
            mask = mask & inputs.present[name][:, None]
        return Frames(stream, mask)

    def _factors(self, depth: int) -> FusionFactors:
        forward_pass = running_pass("Wander's factors are drawn")
        modalities = {}
        for name in self.modalities:
            key, place = self._key(depth, name, "-"), self._key(depth, name, ".")
            feature, token = (
                forward_pass.weights[Part.FACTOR, f"{what}.{place}"].value for what in ("feature", "token")
            )
            # (*S, 1, *event): the 1 is the place of the data plate
            feature, token = (value.squeeze(-4) if value.dim() > 3 else value for value in (feature, token))
            modalities[name] = ModalityFactors(self.down[key], self.bias[key], feature, token, self.absent[key])
        return FusionFactors(modalities, self.gate[depth])

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "num_data": self.num_data,
            "lengths": self.lengths,
            "fusion_rank": self.fusion_rank,
            "terms": self.terms,
            "cp": str(self.rule.cp),
            "every_layer": self.every_layer,
            "blocks": {name: [vars(block) for block in own] for name, own in self.blocks.items()},
            "width": self.width,
            "normalise": self.rule.normalise,
        }
