"""Several contexts of one guide: each with its own reader, null and density; one of them is the guide as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, Batch, Bernoulli, Frames, load, predict, save
from bayes_adapters.analysis.diagnostics import collecting
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Amortised, CrossAttention, PooledContext
from bayes_adapters.models import FusionLoRA
from bayes_adapters.reliability import FrameDensity, Reliability, calibrate_scale, choose_gate
from bayes_adapters.systems import build
from tests.helpers import CONTEXT, assert_same, bert, core_model, differ, fill_B, logits, moments, token_batch
from tests.refusals import refuses

IMAGE = 4
BOTH = {"audio": CONTEXT, "image": IMAGE}
FAMILIES: dict[str, Any] = {
    "cross": lambda m, d, **o: CrossAttention(m, context_dim=d, dim=4, heads=2, **o),
    "shared": lambda m, d, **o: CrossAttention(m, context_dim=d, dim=4, share_kv=True, **o),
    "pooled": lambda m, d, **o: PooledContext(m, context_dim=d, dim=4, **o),
    "projected": lambda m, d, **o: Amortised(m, context="global_shared_heads", context_dim=d, dim=4, **o),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def pictured(size: int = 5) -> Batch:
    """token_batch() with pictures of four patches; row 1 has none, row 3 has two."""
    batch = token_batch(size)
    mask = torch.ones(size, 4, dtype=torch.bool)
    mask[1] = False
    mask[3, 2:] = False
    values = torch.randn(size, 4, IMAGE, generator=torch.Generator().manual_seed(8))
    return Batch(batch.inputs, batch.targets, {**batch.context, "image": Frames(values, mask)})


def made(family: str, widths: Any = None, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model = core_model()
    torch.manual_seed(seed)
    guide = FAMILIES[family](model, BOTH if widths is None else widths, **options)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if "null" in name:
                parameter.normal_()
    return guide


def equal(a: Mapping[str, tuple[Tensor, Tensor]], b: Mapping[str, tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@every_family
def test_one_named_context_is_the_guide_of_one_context_bitwise(family: str) -> None:
    batch, named, plain = token_batch(), made(family, {"audio": CONTEXT}), made(family, CONTEXT)
    assert named.state_dict().keys() == plain.state_dict().keys()
    assert named.config() == plain.config()
    assert equal(moments(named, batch), moments(plain, batch))


@every_family
def test_the_order_of_the_contexts_does_not_matter(family: str) -> None:
    batch = pictured()
    turned = Batch(batch.inputs, batch.targets, dict(reversed(batch.context.items())))
    guide, other = made(family), made(family, {"image": IMAGE, "audio": CONTEXT})
    assert equal(moments(guide, batch), moments(other, turned))
    other.load_state_dict(guide.state_dict())


@every_family
def test_permuted_names_with_permuted_parameters_are_the_same_guide(family: str) -> None:
    """What was called audio is called video, after image: readers go with their names, columns of W₁ change places."""
    batch, guide = pictured(), made(family)
    other = made(family, {"image": IMAGE, "video": CONTEXT}, seed=5)
    state = {}
    for name, value in guide.state_dict().items():
        if name.startswith("heads.") and name.endswith("net.0.weight"):
            value = torch.cat([value[:, :3], value[:, 7:], value[:, 3:7]], 1)
        state[name.replace("reader.audio.", "reader.video.")] = value
    other.load_state_dict(state)
    renamed = Batch(batch.inputs, None, {"video": batch.context["audio"], "image": batch.context["image"]})
    assert_same(moments(guide, batch), moments(other, renamed))


@every_family
def test_a_context_that_is_masked_or_left_out_is_its_own_null(family: str) -> None:
    batch, guide = pictured(), made(family)
    reference = moments(guide, batch)
    masked, absent = moments(guide, batch.masked("image")), moments(guide, batch.without("image"))
    assert_same(masked, absent)
    assert not differ(reference, masked, row=1), "row 1 has no picture in either batch"
    assert differ(reference, masked, row=0)
    assert_same(moments(guide, batch.masked("audio", "image")), moments(guide, batch.without("audio", "image")))
    guide.gate["image"] = 0.0
    assert_same(moments(guide, batch), masked)


@every_family
def test_the_second_context_at_its_null_is_a_guide_of_the_first_with_a_constant(family: str) -> None:
    """W₁'s columns of the masked context times its null is a bias: folded in, the guide of one context has it."""
    batch, guide, alone = pictured(), made(family), made(family, CONTEXT, seed=5)
    state = {}
    for name, value in guide.state_dict().items():
        if not name.startswith("reader.image."):
            state[name.replace("reader.audio.", "reader.")] = value
    for site in guide.model.sites:
        key = site.name.replace(".", "-")
        weight, bias = (guide.state_dict()[f"heads.{key}.net.0.{part}"] for part in ("weight", "bias"))
        null = guide.reader["image"].absent(key).detach()
        state[f"heads.{key}.net.0.weight"] = weight[:, :7]
        state[f"heads.{key}.net.0.bias"] = bias + weight[:, 7:] @ null
    alone.load_state_dict(state)
    assert_same(moments(guide, batch.masked("image")), moments(alone, batch.without("image")))


@every_family
def test_padding_counts_nowhere(family: str) -> None:
    batch, guide = pictured(), made(family)
    context = {}
    for name, frames in batch.context.items():
        values = torch.where(frames.mask[..., None], frames.values, 1000.0)
        context[name] = Frames(
            torch.cat([values, 50 * torch.randn(5, 3, values.shape[-1])], 1),
            torch.cat([frames.mask, torch.zeros(5, 3, dtype=torch.bool)], 1),
        )
    assert_same(moments(guide, batch), moments(guide, Batch(batch.inputs, None, context)))


def density(width: int) -> FrameDensity:
    torch.manual_seed(2)
    frames = torch.randn(60, 3, width)
    held = Frames(torch.randn(40, 3, width), torch.ones(40, 3, dtype=torch.bool))
    return FrameDensity.fit([frames.flatten(0, 1)], [held])


def test_each_context_has_a_density_of_its_own() -> None:
    batch = pictured()
    both = {"audio": Reliability(density(CONTEXT), scale=2.0), "image": Reliability(density(IMAGE), scale=2.0)}
    guide, plain = made("cross", reliability=both), made("cross")
    far = Frames(batch.context["image"].values + 20.0, batch.context["image"].mask)
    far_batch = Batch(batch.inputs, None, {**batch.context, "image": far})
    (loc, wide), (same, narrow) = (next(iter(moments(g, far_batch).values())) for g in (guide, plain))
    weight = both["image"].density(far) * both["audio"].density(batch.context["audio"])
    expected = (weight[:, None, None, None] * narrow**2 + (1 - weight[:, None, None, None]) * 4.0).sqrt()
    torch.testing.assert_close(wide, expected)
    torch.testing.assert_close(loc, same)
    assert float(both["image"].density(far)[0]) < 0.1
    assert float(both["audio"].density(batch.context["audio"])[0]) > 0.5
    guide.gate["image"] = plain.gate["image"] = 0.0
    (_, closed), (_, narrow) = (next(iter(moments(g, far_batch).values())) for g in (guide, plain))
    weight = both["audio"].density(batch.context["audio"])[:, None, None, None]
    expected = (weight * narrow**2 + (1 - weight) * 4.0).sqrt()
    torch.testing.assert_close(closed, expected)  # behind a closed gate nothing is distrusted
    one = made("cross", reliability={"image": both["image"]})
    assert list(one.config()["reliability"]) == ["image"]


@pytest.mark.filterwarnings("ignore:No scale of")
def test_a_scale_is_calibrated_for_one_of_several_densities() -> None:
    batch = pictured()
    both = {"audio": Reliability(density(CONTEXT), scale=2.0), "image": Reliability(density(IMAGE), scale=2.0)}
    guide = made("cross", reliability=both)
    far = Frames(batch.context["image"].values + 20.0, batch.context["image"].mask)
    told = Batch(batch.inputs, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]), {**batch.context, "image": far})
    found = calibrate_scale(guide.model, guide, told, told.targets, modality="image", scales=[0.1, 5.0], num_samples=2)
    assert both["image"].scale == found.scale != 2.0
    assert both["audio"].scale == 2.0
    nlls = []
    for both["image"].scale in found.tried:
        answer = predict(guide.model, guide, told, num_samples=2)
        nlls.append(-float(answer.log_density.double().mean()))
    assert nlls == pytest.approx(list(found.tried.values()))
    assert len(set(nlls)) == len(nlls), "the scale of that context moves the answer"


def test_saved_loaded_and_trained_together(tmp_path: Path) -> None:
    batch = pictured()
    options: dict[str, Any] = {"context_dim": BOTH, "dim": 4, "rank": 2}
    both = {"image": Reliability(density(IMAGE), scale=2.0)}
    model, guide = build(
        "caliber-x-fusion", bert(), Bernoulli(), **options, fusion_width=5, reliability=both, gate={"image": 0.5}
    )
    assert model.reads == guide.reads == {"audio", "image"}
    assert model.gate == guide.gate == {"audio": 1.0, "image": 0.5}
    with torch.no_grad():
        fill_B(model)
        for null in model.null.values():
            null.normal_()
    loss = ELBO(model, guide)(batch)
    loss.backward()
    readers = dict(guide.reader.named_parameters())
    assert {name.split(".")[0] for name, p in readers.items() if float(p.grad.abs().sum()) > 0} == {"audio", "image"}
    save(tmp_path / "saved", model, guide)
    again = load(tmp_path / "saved", bert())
    before = predict(model, guide, batch, num_samples=3)
    assert torch.equal(before.probs, predict(*again, batch, num_samples=3).probs)
    assert not torch.isclose(before.probs, predict(*again, batch.without("image"), num_samples=3).probs)[0]
    choice = choose_gate(model, guide, batch, modality="image", num_samples=2)
    assert model.gate == guide.gate == {"audio": 1.0, "image": choice.gate}


def test_the_entropy_of_attention_is_recorded_for_each_context() -> None:
    guide = made("cross")
    with collecting() as seen, torch.no_grad():
        guide(pictured())
    assert sorted(seen["attention_entropy"]) == sorted(f"{s.name} {m}" for s in guide.model.sites for m in BOTH)


def test_one_named_context_may_have_a_named_density() -> None:
    reliable = Reliability(density(CONTEXT), scale=2.0)
    bare, named = (made("pooled", {"audio": CONTEXT}, reliability=r) for r in (reliable, {"audio": reliable}))
    assert bare.config() == named.config()
    assert equal(moments(bare, token_batch()), moments(named, token_batch()))


@pytest.mark.parametrize("gate", [1.0, 0.5, 0.0])
def test_gates_of_a_model_in_bfloat16(gate: float) -> None:
    from bayes_adapters.guides import Delta

    model = FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT, rank=2, gate=gate).to(torch.bfloat16)
    assert predict(model, Delta(model), token_batch()).probs.isfinite().all()


def test_the_head_of_late_fusion_sees_all_of_them_side_by_side() -> None:
    from bayes_adapters.guides import Delta

    batch = pictured()
    model = fill_B(FusionLoRA(bert(), Bernoulli(), context_dim=BOTH, rank=2, fusion_width=4))
    with torch.no_grad():
        for null in model.null.values():
            null.normal_()
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(Delta(model), batch)
    audio, image = (batch.context[name] for name in BOTH)
    tail = seen[0][:, -CONTEXT - IMAGE :]
    torch.testing.assert_close(tail[0], torch.cat([audio.mean()[0], image.mean()[0]]))
    torch.testing.assert_close(tail[1, CONTEXT:], model.null["image"])  # row 1 has no picture
    torch.testing.assert_close(tail[2, :CONTEXT], model.null["audio"])  # row 2 has no audio


def test_refusals() -> None:
    model, batch = core_model(), pictured()
    guide = FAMILIES["cross"](model, BOTH)
    with refuses(ConfigError, "audio", "image", "'imgae'"):
        guide(Batch(batch.inputs, None, {"audio": batch.context["audio"], "imgae": batch.context["image"]}))
    with refuses(ConfigError, "audio", "image", "depth"):
        guide(Batch(batch.inputs, None, {"depth": batch.context["audio"]}))
    with refuses(DataError, "'image'", CONTEXT, IMAGE):
        guide(Batch(batch.inputs, None, {"image": batch.context["audio"]}))
    with refuses(ConfigError, "'values'", "values_frames"):
        FAMILIES["cross"](model, {"values": CONTEXT, "image": IMAGE})
    with refuses(ConfigError, "'a-b'", "'a.b'", "Rename"):
        FusionLoRA(bert(1), Bernoulli(), rank=2, context_dim={"a.b": CONTEXT, "a-b": IMAGE})
    strict = FAMILIES["cross"](model, BOTH, null_context=False)
    with refuses(DataError, "'audio'", [2]):
        strict(batch)
    with refuses(ConfigError, "modality", "'lidar'"):
        FAMILIES["cross"](model, BOTH, modality="lidar")
    with refuses(ConfigError, "context_dim"):
        FAMILIES["cross"](model, {})
    with refuses(ConfigError, "'audio'", 0):
        FAMILIES["cross"](model, {"audio": 0, "image": 3})
    with refuses(ConfigError, "gate", "'imagee'", "'image'"):
        FAMILIES["cross"](model, BOTH, gate={"imagee": 0.5})
    reliable = Reliability(density(IMAGE))
    with refuses(ConfigError, "reliability", "audio", "image"):
        FAMILIES["cross"](model, BOTH, reliability=reliable)
    with refuses(ConfigError, "reliability", "depth"):
        FAMILIES["cross"](model, {"image": IMAGE}, reliability={"depth": reliable})
    with refuses(ConfigError, "reliability", "depth"):
        FAMILIES["cross"](model, BOTH, reliability={"depth": reliable})
    with refuses(ConfigError, "audio", "image", "modality"):
        choose_gate(model, guide, batch)
    far = FAMILIES["cross"](model, BOTH, reliability={"image": reliable, "audio": Reliability(density(CONTEXT))})
    with refuses(ConfigError, "audio", "image", "modality="):
        calibrate_scale(model, far, batch, batch.targets)
    with refuses(ConfigError, "imag", "'image'"):
        calibrate_scale(model, far, batch, batch.targets, modality="imag")
