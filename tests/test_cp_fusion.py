"""Multiplicative fusion: the released formula, masks, lengths, starts, folding and many modalities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from bayes_adapters import Frames
from bayes_adapters.cp_factors import CP, FusionFactors, FusionRule, ModalityFactors, Placement, Tokens
from bayes_adapters.cp_fusion import RELEASED, cp_fusion, cp_fusion_pooled, cp_fusion_residual
from bayes_adapters.cp_module import CPFusion, Init
from bayes_adapters.errors import ConfigError, DataError

LENGTHS = {"text": 5, "audio": 7, "vision": 4}
RULES = [
    FusionRule(placement, cp, tokens, normalise)
    for placement in Placement
    for cp in CP
    for tokens in Tokens
    for normalise in (False, True)
]


def name_of(rule: FusionRule) -> str:
    return f"{rule.placement}-{rule.cp}-{rule.tokens}-{'rms' if rule.normalise else 'plain'}"


def full(values: Tensor) -> Frames:
    return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool))


def inputs(lengths: Mapping[str, int] = LENGTHS, rows: int = 3, width: int = 6, **kind: Any) -> dict[str, Frames]:
    return {name: full(torch.randn(rows, length, width, **kind)) for name, length in lengths.items()}


def drawn(
    lengths: Mapping[str, int] = LENGTHS,
    *lead: int,
    width: int = 6,
    rank: int = 3,
    terms: int = 2,
    gate: int = 0,
    null: bool = True,
) -> FusionFactors:
    """Random float64 factors of ``lead`` draws."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, dtype=torch.float64)

    modalities = {
        name: ModalityFactors(
            normal(rank, width),
            normal(rank),
            normal(terms, rank, width),
            normal(terms, length, rank),
            normal(width) if null else None,
        )
        for name, length in lengths.items()
    }
    return FusionFactors(modalities, normal(gate, width) if gate else None)


def gate_rows(rule: FusionRule, count: int = 3) -> int:
    return 1 if rule.placement is Placement.POOLED else count


def tensors(out: Any) -> dict[str, Tensor]:
    """The values of either placement's output."""
    return {"": out.values} if isinstance(out, Frames) else {name: frames.values for name, frames in out.items()}


def same(left: Any, right: Any) -> bool:
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def change(frames: Frames, factor: Tensor) -> Frames:
    return Frames(frames.values * factor, frames.mask)


def by_hand(x: Mapping[str, Tensor], factors: FusionFactors, sums_inside: bool) -> Tensor:
    """The fusion of one example, written out: (r, d), without gate and residual; fixed tokens."""
    terms = next(iter(factors.modalities.values())).feature.shape[0]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(1 if sums_inside else terms):
        product = torch.ones((), dtype=torch.float64)
        for name, m in factors.modalities.items():
            hidden = gelu(x[name] @ m.down.T + m.bias)
            feature, token = (m.feature.sum(0), m.token.sum(0)) if sums_inside else (m.feature[i], m.token[i])
            product = product * ((hidden @ feature).T @ token)
        total = total + product
    return total.T


# ---- formula ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", list(Tokens))
@pytest.mark.parametrize("cp", list(CP))
def test_equals_the_formula_and_interpolation_reduces_to_the_released_form(cp: CP, tokens: Tokens) -> None:
    """At n_m = L_m and without padding both kinds of tokens are the released form with the same matrix."""
    x, factors = inputs(dtype=torch.float64), drawn()
    out = cp_fusion_pooled(x, factors, FusionRule(Placement.POOLED, cp, tokens, normalise=False))
    for b in range(3):
        sequences = {name: frames.values[b] for name, frames in x.items()}
        residual = torch.cat(list(sequences.values()))[:3]
        expected = by_hand(sequences, factors, cp is CP.PRODUCT_OF_SUMS) + residual
        torch.testing.assert_close(out.values[b], expected, rtol=1e-10, atol=1e-10)
    assert bool(out.mask.all())


def test_the_released_rule_is_the_default_of_the_function() -> None:
    assert FusionRule("pooled", "product_of_sums", "fixed", normalise=False) == RELEASED
    x, factors = inputs(dtype=torch.float64), drawn()
    assert same(cp_fusion(x, factors), cp_fusion_pooled(x, factors, RELEASED))


@pytest.mark.parametrize("cp", list(CP))
def test_residual_placement_reads_z_with_each_modalitys_own_token_factor(cp: CP) -> None:
    x, factors = inputs(dtype=torch.float64), drawn(gate=3)
    out = cp_fusion_residual(x, factors, FusionRule(Placement.RESIDUAL, cp, Tokens.FIXED, normalise=False))
    assert factors.gate is not None
    for b in range(3):
        sequences = {name: frames.values[b] for name, frames in x.items()}
        for row, (name, m) in enumerate(factors.modalities.items()):
            delta = torch.zeros_like(sequences[name])
            if cp is CP.PRODUCT_OF_SUMS:
                delta = m.token.sum(0) @ by_hand(sequences, factors, True)
            else:
                for i in range(2):
                    one = {
                        k: ModalityFactors(f.down, f.bias, f.feature[i : i + 1], f.token[i : i + 1])
                        for k, f in factors.modalities.items()
                    }
                    delta = delta + m.token[i] @ by_hand(sequences, FusionFactors(one), False)
            expected = sequences[name] + factors.gate[row] * delta * math.sqrt(LENGTHS[name] / 3)
            torch.testing.assert_close(out[name].values[b], expected, rtol=1e-10, atol=1e-10)


def test_normalised_factors_have_unit_root_mean_square() -> None:
    """With null = 1 for all other modalities, what is added is one modality's normalised factor."""
    factors = drawn(terms=1)
    for m in factors.modalities.values():
        assert m.null is not None
        m.null.fill_(1.0)
    x = {"audio": inputs(dtype=torch.float64)["audio"]}
    out = cp_fusion_pooled(x, factors, FusionRule()).values - x["audio"].values[:, :3]
    torch.testing.assert_close(out.square().mean((1, 2)), torch.ones(3, dtype=torch.float64), atol=1e-4, rtol=0)


def test_gradients_by_finite_differences() -> None:
    x, factors = inputs(rows=2, dtype=torch.float64), drawn(gate=3)
    x["audio"].mask[0, 2:] = False
    x["vision"].mask[1] = False
    audio = factors.modalities["audio"]
    rule = FusionRule("residual")

    def run(values: Tensor, down: Tensor, feature: Tensor, token: Tensor, gate: Tensor) -> Tensor:
        modality = ModalityFactors(down, audio.bias, feature, token, audio.null)
        replaced = FusionFactors(dict(factors.modalities) | {"audio": modality}, gate)
        sequences = x | {"audio": Frames(values, x["audio"].mask)}
        return torch.cat([f.values for f in cp_fusion_residual(sequences, replaced, rule).values()], 1)

    assert factors.gate is not None
    arguments = (x["audio"].values, audio.down, audio.feature, audio.token, factors.gate)
    assert torch.autograd.gradcheck(run, [a.clone().requires_grad_() for a in arguments])


# ---- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 9, 40])
def test_tokens_read_the_curve_at_their_midpoints(length: int) -> None:
    """Against numpy's interpolation, for fewer and for more tokens than knots, in both directions."""
    factors = drawn({"text": 5, "audio": 5})
    text = factors.modalities["text"]
    x = {"text": inputs({"text": length}, rows=1, dtype=torch.float64)["text"]}
    places = (np.arange(length) + 0.5) * 5 / length - 0.5
    matrix = text.token.sum(0).numpy()
    curve = torch.tensor(np.stack([np.interp(places, np.arange(5), column) for column in matrix.T], 1))
    hidden = gelu(x["text"].values[0] @ text.down.T + text.bias)
    z = 5 / length * curve.T @ hidden @ text.feature.sum(0) * factors.modalities["audio"].null
    rule = FusionRule("residual", "product_of_sums", normalise=False)
    out = cp_fusion_residual(x, factors, rule)["text"].values[0] - x["text"].values[0]
    torch.testing.assert_close(out, math.sqrt(5 / 3) * curve @ z)


def test_interpolated_fusion_converges_as_a_curve_is_sampled_more_finely() -> None:
    """Z is an integral over the sequence: the midpoint rule's error falls, and Z does not grow with the length."""
    factors = drawn({"text": 6, "audio": 6})
    rule = FusionRule("pooled", normalise=False)
    waves = torch.randn(4, 6, dtype=torch.float64)

    def fused(n: int) -> Tensor:
        time = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
        curve = torch.sin(time * torch.arange(1, 5) * 2.0) @ waves
        x = full(curve[None])
        return (cp_fusion_pooled({"text": x, "audio": x}, factors, rule).values - curve[:3])[0]

    limit = fused(6000)
    errors = [((fused(n) - limit).norm() / limit.norm()).item() for n in (30, 120, 480)]
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 8, "second order would be a sixteenth"
    assert errors[2] < errors[1] / 8


def test_fixed_tokens_refuse_more_tokens_than_rows_and_take_fewer() -> None:
    factors = drawn()
    short = inputs(dtype=torch.float64)
    short["audio"].mask[:, 4:] = False
    zeroed = short | {"audio": Frames(short["audio"].values[:, :4], short["audio"].mask[:, :4])}
    assert same(cp_fusion(short, factors), cp_fusion(zeroed, factors))
    long = inputs(LENGTHS | {"audio": 8}, dtype=torch.float64)
    with pytest.raises(DataError, match=r"'audio' has 8 real tokens and its fixed token factor 7 rows"):
        cp_fusion(long, factors)


def test_fewer_than_r_real_tokens_leave_zeros_in_the_pooled_residual() -> None:
    x = inputs({"text": 2, "audio": 3}, rows=1)
    x["text"].mask[0, 0] = False
    x["audio"].mask[0, :2] = False
    fusion = CPFusion({"text": 4, "audio": 4}, 6, rank=4)
    expected = torch.zeros(1, 4, 6)
    expected[0, 0], expected[0, 1] = x["text"].values[0, 1], x["audio"].values[0, 2]
    assert torch.equal(fusion(x).values, expected)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_masked_frames_count_nowhere_bit_for_bit(rule: FusionRule, dtype: torch.dtype) -> None:
    """Their content, and masked frames put before, between and after the real ones, change no bit of the output."""
    factors = drawn(gate=gate_rows(rule))
    lengths = {name: length + 13 for name, length in LENGTHS.items()}
    wide = inputs(lengths, rows=4)
    tight: dict[str, Frames] = {}
    for name, length in LENGTHS.items():
        counts = [length, 1, 2, 0 if name == "audio" else 3]
        values, mask = torch.zeros(4, length, 6), torch.zeros(4, length, dtype=torch.bool)
        wide[name].mask.fill_(False)
        for b, count in enumerate(counts):
            places = torch.randperm(lengths[name])[:count].sort().values
            wide[name].mask[b, places] = True
            values[b, :count], mask[b, :count] = wide[name].values[b, places], True
        tight[name] = Frames(values.to(dtype), mask)
        wide[name] = Frames(wide[name].values.to(dtype), wide[name].mask)
    other = {
        name: Frames(torch.where(f.mask[..., None], f.values, 10 * torch.randn_like(f.values)), f.mask)
        for name, f in wide.items()
    }
    outs = [cp_fusion(x, factors, rule) for x in (tight, wide, other)]
    if isinstance(outs[0], Frames):
        assert same(outs[0], outs[1])
        assert same(outs[0], outs[2])
        return
    real = [
        {k: f.values[x[k].mask] for k, f in out.items()}  # type: ignore[union-attr]
        for x, out in zip((tight, wide, other), outs, strict=True)
    ]
    for name in LENGTHS:
        assert torch.equal(real[0][name], real[1][name])
        assert torch.equal(real[0][name], real[2][name])
        assert torch.equal(outs[2][name].values[~other[name].mask], other[name].values[~other[name].mask])
        assert torch.equal(outs[2][name].mask, other[name].mask)
        assert not torch.equal(real[0][name], tight[name].values[tight[name].mask]), "something must have been added"


def test_masked_frames_get_and_pass_no_gradient() -> None:
    x, factors = inputs(dtype=torch.float64), drawn()
    x["audio"].mask[:, 3:] = False
    x["audio"].values[:, 3:] = math.nan
    x["audio"].values.requires_grad_()
    cp_fusion_pooled(x, factors, FusionRule()).values.sum().backward()
    grad = x["audio"].values.grad
    assert grad is not None
    assert grad[:, 3:].abs().max() == 0
    assert grad[:, :3].abs().min() > 0


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    factors = drawn(gate=3)
    x = inputs(dtype=torch.float64)
    x["text"].mask[0, 2:] = False
    together = cp_fusion_residual(x, factors, FusionRule("residual"))
    for b in range(3):
        alone = cp_fusion_residual({k: f[b : b + 1] for k, f in x.items()}, factors, FusionRule("residual"))
        for name in x:
            torch.testing.assert_close(alone[name].values[0], together[name].values[b], rtol=1e-12, atol=1e-12)


# ---- missing modalities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_the_null_value_starts_at_ones_and_leaves_the_others_product(normalise: bool) -> None:
    fusion = CPFusion(LENGTHS, 6, rank=3, normalise=normalise)
    factors = fusion.factors()
    assert all(bool((m.null == 1).all()) for m in factors.modalities.values() if m.null is not None)
    assert len(fusion.null) == 3
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    x = inputs(rows=4)
    x["audio"].mask[1] = False
    out = fusion(x)
    two = FusionFactors({k: m for k, m in factors.modalities.items() if k != "audio"}, factors.gate)
    others = cp_fusion_pooled({k: x[k] for k in ("text", "vision")}, two, fusion.rule)
    torch.testing.assert_close(out.values[1], others.values[1])
    assert not torch.allclose(out.values[0], others.values[0], atol=1e-3)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_left_out_is_the_same_as_masked_in_every_row(rule: FusionRule) -> None:
    factors = drawn(gate=gate_rows(rule))
    x = inputs(rows=4)
    x["audio"].mask.fill_(False)
    masked, left_out = cp_fusion(x, factors, rule), cp_fusion({k: x[k] for k in ("text", "vision")}, factors, rule)
    if isinstance(masked, dict):
        assert torch.equal(masked.pop("audio").values, x["audio"].values), "nothing to update"
    assert same(masked, left_out)
    for value in tensors(left_out).values():
        assert bool(value.isfinite().all())


def test_the_null_value_learns_from_the_rows_that_miss_the_modality() -> None:
    fusion = CPFusion(LENGTHS, 6, rank=3)
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    x = inputs(rows=4)
    x["audio"].mask[1] = False
    fusion(x).values.square().sum().backward()
    text, audio, _ = [null.grad for null in fusion.null]
    assert audio is not None
    assert audio.abs().min() > 0
    assert text is not None
    assert text.abs().max() == 0


def test_without_a_null_value_a_missing_modality_is_an_error() -> None:
    factors = drawn(null=False)
    x = inputs()
    x["audio"].mask[1] = False
    with pytest.raises(DataError, match=r"Rows \[1\] have no real token of 'audio'"):
        cp_fusion(x, factors)
    with pytest.raises(DataError, match=r"Rows \[0, 1, 2\] have no real token of 'vision'"):
        cp_fusion({k: x[k] for k in ("text", "audio")} | {"audio": full(x["audio"].values)}, factors)


def test_rows_that_miss_everything_get_the_product_of_null_values() -> None:
    factors = drawn()
    x = inputs(rows=1, dtype=torch.float64)
    for frames in x.values():
        frames.mask.fill_(False)
    nulls = [m.null for m in factors.modalities.values() if m.null is not None]
    expected = (nulls[0] * nulls[1] * nulls[2]).expand(1, 3, 6)
    torch.testing.assert_close(cp_fusion_pooled(x, factors, FusionRule()).values, expected * math.sqrt(2))


# ---- factors from outside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_draws_of_the_factors_are_folded_into_the_rows(rule: FusionRule) -> None:
    """Draws (2, 3) of some factors and none of others equal six calls with one draw each, rows in the order [S, B]."""
    factors = drawn(LENGTHS, 2, 3, gate=gate_rows(rule))
    still = drawn(gate=gate_rows(rule))
    factors = FusionFactors(dict(factors.modalities) | {"text": still.modalities["text"]}, factors.gate)
    x = inputs(rows=12, dtype=torch.float64)
    x["audio"].mask[3] = False
    x["vision"].mask[5, 2:] = False
    together = tensors(cp_fusion(x, factors, rule))
    assert factors.draws == (2, 3)
    for s in range(6):
        place = (s // 3, s % 3)
        one = {
            name: m
            if name == "text"
            else ModalityFactors(m.down[place], m.bias[place], m.feature[place], m.token[place], m.null[place])  # type: ignore[index]
            for name, m in factors.modalities.items()
        }
        assert factors.gate is not None
        rows = slice(2 * s, 2 * s + 2)
        alone = cp_fusion({k: f[rows] for k, f in x.items()}, FusionFactors(one, factors.gate[place]), rule)
        for name, value in tensors(alone).items():
            torch.testing.assert_close(value, together[name][rows], rtol=1e-10, atol=1e-10)


def test_plates_of_size_one_are_draws_too() -> None:
    one, x = drawn(LENGTHS, 1, 1), inputs(dtype=torch.float64)
    flat = {
        k: ModalityFactors(m.down[0, 0], m.bias[0, 0], m.feature[0, 0], m.token[0, 0])
        for k, m in one.modalities.items()
    }
    assert same(cp_fusion(x, one), cp_fusion(x, FusionFactors(flat)))


# ---- fold ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "width", "rank", "count", "folded"),
    [
        ({"text": 50, "audio": 50, "vision": 50}, 40, 16, 46_128, 1_968 + 1_920 + 2_400),
        ({"image": 197, "text": 50}, 768, 64, 1_074_560, 212_544),
    ],
    ids=["mosi", "food"],
)
def test_parameter_counts(lengths: dict[str, int], width: int, rank: int, count: int, folded: int) -> None:
    fusion = CPFusion.released(lengths, width, rank=rank)
    assert sum(p.numel() for p in fusion.parameters()) == count == fusion.factors().num_elements()
    assert sum(p.numel() for p in fusion.fold().parameters()) == folded


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("tokens", list(Tokens))
def test_folding_keeps_the_function(tokens: Tokens, placement: Placement) -> None:
    fusion = CPFusion(
        LENGTHS, 6, rank=3, feature_terms=8, token_terms=12, cp="product_of_sums", tokens=tokens, placement=placement
    ).double()
    x = inputs(dtype=torch.float64)
    x["audio"].mask[0] = False
    train(fusion, x, steps=3)
    folded = fusion.eval().fold()
    for name, value in tensors(fusion(x)).items():
        torch.testing.assert_close(tensors(folded(x))[name], value, rtol=0, atol=1e-6)
        assert not torch.allclose(value, tensors(CPFusion(LENGTHS, 6, rank=3, placement=placement)(x))[name])
    assert (folded.feature_terms, folded.token_terms, folded.training) == (1, 1, False)
    saved = sum(p.numel() for p in fusion.parameters()) - sum(p.numel() for p in folded.parameters())
    assert saved == 7 * 3 * 3 * 6 + 11 * 3 * sum(LENGTHS.values())


def test_a_sum_of_products_does_not_fold_and_says_why() -> None:
    with pytest.raises(ConfigError, match=r"a sum of R products is in general no product"):
        CPFusion(LENGTHS, 6).fold()


def test_the_sum_of_products_says_more_than_the_product_of_sums() -> None:
    """Its Z, as a function of one token factor's terms, is not a function of their sum."""
    x, factors = inputs(dtype=torch.float64), drawn()
    text = factors.modalities["text"]
    moved = torch.stack([text.token[0] + 1.0, text.token[1] - 1.0])
    shifted = ModalityFactors(text.down, text.bias, text.feature, moved, text.null)
    other = FusionFactors(dict(factors.modalities) | {"text": shifted})
    for cp, equal in ((CP.PRODUCT_OF_SUMS, True), (CP.SUM_OF_PRODUCTS, False)):
        rule = FusionRule("pooled", cp, "fixed", normalise=False)
        a, b = cp_fusion_pooled(x, factors, rule).values, cp_fusion_pooled(x, other, rule).values
        assert torch.allclose(a, b) is equal


# ---- starts ----------------------------------------------------------------------------------------------------------


def train(fusion: CPFusion, x: Mapping[str, Frames], steps: int) -> list[set[str]]:
    """Adam on a target that asks for a change; the names of the parameters with a non-zero gradient at each step."""
    optimiser = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    target = {name: torch.randn_like(value) for name, value in tensors(fusion(x)).items()}
    moved: list[set[str]] = []
    for _ in range(steps):
        optimiser.zero_grad()
        sum((v - target[k]).square().mean() for k, v in tensors(fusion(x)).items()).backward()  # type: ignore[union-attr]
        moved.append({k for k, p in fusion.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)})
        optimiser.step()
    return moved


def build(init: Init, placement: Placement, lengths: Mapping[str, int] = LENGTHS) -> CPFusion:
    if init is Init.GATED:
        return CPFusion(lengths, 6, rank=3, placement=placement)
    return CPFusion.released(lengths, 6, rank=3, placement=placement, init=init)


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("init", list(Init))
def test_at_the_start_the_output_is_the_residual(init: Init, placement: Placement) -> None:
    x = inputs()
    x["text"].mask[0, 2:] = False
    if init is Init.GATED:
        x["audio"].mask[1] = False
    out = build(init, placement)(x)
    if placement is Placement.RESIDUAL:
        assert all(torch.equal(out[k].values, x[k].values) for k in x)
        return
    for b in range(3):
        real = torch.cat([f.values[b][f.mask[b]] for f in x.values()])
        assert torch.equal(out.values[b], real[:3])


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize(("init", "first"), [(Init.GATED, "gate"), (Init.ONE_ZERO, "token.0")])
def test_one_tensor_learns_at_once_and_all_from_the_second_step(init: Init, first: str, placement: Placement) -> None:
    x = inputs(rows=5)
    if init is Init.GATED:  # null values learn from rows that need them
        for b, frames in enumerate(x.values()):
            frames.mask[b] = False
    fusion = build(init, placement)
    moved = train(fusion, x, steps=3)
    everything = {name for name, _ in fusion.named_parameters()}
    assert moved == [{first}, everything, everything]


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("modalities", [2, 3])
def test_the_released_start_never_learns(modalities: int, placement: Placement) -> None:
    lengths = dict(list(LENGTHS.items())[:modalities])
    fusion = build(Init.RELEASED, placement, lengths)
    before = {k: v.clone() for k, v in fusion.state_dict().items()}
    assert train(fusion, inputs(lengths), steps=5) == [set()] * 5
    assert all(torch.equal(before[k], v) for k, v in fusion.state_dict().items())
    assert fusion.feature[0].std().item() == pytest.approx(1.0, rel=0.2)


def test_starting_scales() -> None:
    fusion = CPFusion({"a": 40, "b": 10}, 64, rank=16, feature_terms=8, token_terms=12, cp="product_of_sums")
    assert fusion.feature[0].std().item() == pytest.approx(1 / math.sqrt(16 * 8), rel=0.05)
    assert fusion.token[0].std().item() == pytest.approx(1 / math.sqrt(40 * 12), rel=0.05)
    assert fusion.token[1].std().item() == pytest.approx(1 / math.sqrt(10 * 12), rel=0.1)
    assert 0.1 < fusion.down[0].abs().max().item() <= 1 / 8


# ---- many modalities -------------------------------------------------------------------------------------------------


def sizes(fusion: CPFusion, x: Mapping[str, Frames]) -> tuple[float, float, float]:
    """Root mean square of what is added, and the least and largest gradient norm of a tensor, for a unit probe."""
    added = torch.cat([v.flatten() for v in tensors(fusion(x)).values()])
    start = CPFusion(fusion.lengths, fusion.width, placement=fusion.rule.placement)
    delta = added - torch.cat([v.flatten() for v in tensors(start(x)).values()])
    (delta * torch.randn_like(delta)).sum().div(math.sqrt(delta.numel())).backward()
    norms = [p.grad.norm().item() for k, p in fusion.named_parameters() if p.grad is not None and "null" not in k]
    return delta.detach().square().mean().sqrt().item(), min(norms), max(norms)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("cp", list(CP))
@pytest.mark.parametrize("modalities", [2, 7])
def test_normalised_products_neither_explode_nor_vanish(
    modalities: int, cp: CP, placement: Placement, seed: int
) -> None:
    """Stated range: root mean square of what is added in [0.5, 2], every gradient norm in [0.3, 50], gate 1."""
    torch.manual_seed(seed)
    x = inputs({f"m{i}": 10 + 7 * i for i in range(modalities)}, rows=32, width=64)
    fusion = CPFusion(dict.fromkeys(x, 16), 64, cp=cp, placement=placement)
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    size, least, largest = sizes(fusion, x)
    assert 0.5 < size < 2
    assert 0.3 < least <= largest < 50


def test_without_normalisation_seven_modalities_leave_that_range() -> None:
    x = inputs({f"m{i}": 10 + 7 * i for i in range(7)}, rows=32, width=64)
    vanishing = CPFusion(dict.fromkeys(x, 16), 64, normalise=False)
    torch.nn.init.ones_(vanishing.gate)  # type: ignore[arg-type]
    size, _, largest = sizes(vanishing, x)
    assert size < 1e-6
    assert largest < 1e-5
    exploding = CPFusion.released({k: f.values.shape[1] for k, f in x.items()}, 64, init="released")
    for token in exploding.token:
        torch.nn.init.normal_(token)
    size, _, largest = sizes(exploding, x)
    assert size > 1e10
    assert largest > 1e10


# ---- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_outputs_have_the_inputs_dtype_and_are_computed_in_float32_or_wider(
    dtype: torch.dtype, placement: Placement
) -> None:
    fusion = CPFusion(LENGTHS, 6, rank=3, placement=placement)
    torch.nn.init.ones_(fusion.gate)  # type: ignore[arg-type]
    x = inputs(dtype=dtype)
    wide = {k: full(f.values.double()) for k, f in x.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = tensors(fusion(x))
    for name, expected in tensors(fusion.double()(wide)).items():
        assert out[name].dtype is dtype
        tolerance = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 1e-5)
        torch.testing.assert_close(out[name].double(), expected, rtol=2 * tolerance, atol=2 * tolerance)


def test_config_rebuilds_the_module() -> None:
    fusion = CPFusion.released(LENGTHS, 6, rank=3, placement="residual")
    again = CPFusion(**fusion.config())
    again.load_state_dict(fusion.state_dict())
    x = inputs()
    assert same(fusion(x), again(x))
    assert "init=one_zero" in repr(fusion)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": {}}, r"at least two modalities; got lengths=\{\}"),
        ({"lengths": {"text": 4}}, r"at least two modalities; got lengths=\{'text': 4\}"),
        ({"rank": 0}, "rank must be a whole number of at least 1; got 0"),
        ({"width": 0}, "width must be"),
        ({"lengths": {"text": 4, "audio": 0}}, r"lengths\['audio'\] must be"),
        ({"feature_terms": 2, "token_terms": 3}, r"feature_terms \(2\) and token_terms \(3\) must be equal"),
        ({"cp": "sum_of_product"}, "Did you mean 'sum_of_products'"),
        ({"placement": "before"}, "Unknown placement 'before'"),
        ({"tokens": "fix"}, "Unknown tokens 'fix'"),
        ({"init": "zero"}, "Unknown init 'zero'"),
        ({"init": "one_zero"}, "needs normalise=False and null=False; got normalise=True and null=True"),
        ({"init": "released", "null": False}, "got normalise=True and null=False"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CPFusion(**({"lengths": LENGTHS, "width": 6} | options))


def test_sequences_are_checked() -> None:
    factors, x = drawn(), inputs()
    cases: list[tuple[dict[str, Frames], type[Exception], str]] = [
        ({}, DataError, "There is no sequence to fuse"),
        (x | {"audoi": x["audio"]}, ConfigError, "No factors for the modality 'audoi'.*Did you mean 'audio'"),
        (x | {"audio": full(torch.randn(3, 7, 5))}, DataError, r"as wide as the factors, d = 6.*'audio': \(3, 7, 5\)"),
        (inputs(width=5), DataError, "as wide as the factors, d = 6"),
        (x | {"audio": full(torch.randn(2, 7, 6))}, DataError, r"same number of rows.*'audio': \(2, 7, 6\)"),
        (inputs(rows=0), DataError, "at least 1"),
    ]
    for sequences, error, message in cases:
        with pytest.raises(error, match=message):
            cp_fusion(sequences, factors)
    with pytest.raises(DataError, match="The factors hold 2 draws and the sequences 3 rows"):
        cp_fusion(x, drawn(LENGTHS, 2))


def test_factors_are_checked() -> None:
    factors = drawn()
    text = factors.modalities["text"]
    with pytest.raises(ConfigError, match=r"at least two modalities; got \['text'\]"):
        FusionFactors({"text": text})
    with pytest.raises(ConfigError, match="same rank and the same width"):
        FusionFactors({"text": text, "audio": drawn(rank=2).modalities["audio"]})
    with pytest.raises(ConfigError, match=r"The gate has shape \(2, 6\); it must be \(\*S, 1, 6\)"):
        FusionFactors(factors.modalities, torch.ones(2, 6))
    with pytest.raises(ConfigError, match="draws of the factors do not broadcast"):
        FusionFactors({"text": drawn(LENGTHS, 2).modalities["text"], "audio": drawn(LENGTHS, 3).modalities["audio"]})
    with pytest.raises(ConfigError, match="all need the same number of terms"):
        cp_fusion(
            inputs(),
            FusionFactors(dict(factors.modalities) | {"audio": drawn(terms=3).modalities["audio"]}),
            FusionRule(),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.zeros(2)}, r"with one r and one d; got .*'bias': \(2,\)"),
        ({"feature": torch.zeros(2, 3, 5)}, "with one r and one d"),
        ({"feature": torch.zeros(3, 6)}, "with one r and one d"),
        ({"token": torch.zeros(2, 5, 4)}, "with one r and one d"),
        ({"token": torch.zeros(5, 3)}, "with one r and one d"),
        ({"null": torch.zeros(5)}, "with one r and one d"),
        ({"token": torch.zeros(2, 0, 3)}, "must be at least 1"),
        ({"feature": torch.zeros(0, 3, 6)}, "must be at least 1"),
        (
            {
                "down": torch.zeros(0, 6),
                "bias": torch.zeros(0),
                "feature": torch.zeros(2, 0, 6),
                "token": torch.zeros(2, 5, 0),
            },
            "rank, width, terms and length must be at least 1",
        ),
    ],
)
def test_a_modalitys_factors_are_checked(changes: dict[str, Tensor], message: str) -> None:
    """The checks themselves: under the tests' instrumentation the annotations object first."""
    right = drawn().modalities["text"]
    factors = object.__new__(ModalityFactors)
    for name in ("down", "bias", "feature", "token", "null"):
        object.__setattr__(factors, name, changes.get(name, getattr(right, name)))
    with pytest.raises(ConfigError, match=message):
        factors.__post_init__()


@pytest.mark.parametrize("placement", list(Placement))
def test_a_gate_of_the_other_placement_is_refused(placement: Placement) -> None:
    rows = 3 if placement is Placement.POOLED else 1
    with pytest.raises(ConfigError, match=rf"The gate has shape \({rows}, 6\); this placement needs"):
        cp_fusion(inputs(), drawn(gate=rows), FusionRule(placement))
