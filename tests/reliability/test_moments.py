"""A density over whole contexts: their mean, their variance and their steps, both sides of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, unfold

from bayes_adapters import Frames, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.reliability import FrameDensity, Reliability, _moments
from tests.helpers import CONTEXT, bert, moments
from tests.refusals import refuses
from tests.reliability.parts import D, cloud, contexts, fitted, guide_of, heard, rng


def whole(values: Tensor) -> Frames:
    return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool))


def test_independent_gaussian_frames_have_the_moments_of_chi_squared() -> None:
    """S d b ~ χ²_d and S d w ~ χ²_{(S−1)d}, independent; log χ²_n has mean ψ(n/2) + log 2 and variance ψ′(n/2)."""
    length, count = 5, 4000
    values = cloud(count * length, 1).reshape(count, length, D)
    density = FrameDensity.fit([cloud(20_000, 2)], [whole(values)], moments=True)
    halves = torch.tensor([D / 2, (length - 1) * D / 2])
    expected = torch.digamma(halves) + torch.tensor(2 / (length * D)).log()
    torch.testing.assert_close(density.centres[0, :2], expected, rtol=0.0, atol=0.04)
    sigma = torch.linalg.inv(density.root @ density.root.mT)
    spread = torch.polygamma(1, halves) + _moments._COMMON**2
    torch.testing.assert_close(sigma.diagonal()[:2], spread, rtol=0.1, atol=0.0)
    assert abs(float(sigma[0, 1])) < 0.05 * float(sigma[0, 0])
    # neighbours of independent frames differ by as much as any two
    b, w, v = _moments.moments(torch.randn(4000, length, D, generator=rng(5)), torch.ones(4000, length).bool())
    found = torch.stack([b.mean(), w.mean(), v.mean()])
    torch.testing.assert_close(found, torch.tensor([1 / length, 1 - 1 / length, 1.0]), rtol=0.03, atol=0.0)


def test_between_and_within_add_up_to_the_distance_and_masked_frames_count_nowhere() -> None:
    frames, plain = contexts(20, 7, shift=3.0), fitted(shifts=(0.0,))
    y = next(plain._whitened(frames))
    b, w, v = _moments.moments(y, frames.mask)
    torch.testing.assert_close(b + w, plain.distance(frames))
    for i, mask in enumerate(frames.mask):
        real = y[i][mask]
        steps = real.diff(dim=0).square().mean() / 2 if len(real) > 1 else torch.zeros(())
        torch.testing.assert_close(v[i], steps)
        torch.testing.assert_close(w[i], (real - real.mean(0)).square().mean())
    density = fitted(shifts=(0.0,), moments=True)
    huge = frames.values.masked_fill(~frames.mask[..., None], 3e38)
    torch.testing.assert_close(density.distance(Frames(huge, frames.mask)), density.distance(frames))
    far = Frames(torch.full((2, 3, D), 1e30), torch.tensor([[False] * 3, [True] * 3]))
    assert density(far).tolist() == [1.0, 0.0]
    gap, y = torch.tensor([[True, False, True]]), torch.ones(1, 3, D) * torch.tensor([1.0, 0.0, 3.0])[:, None]
    assert [float(part) for part in _moments.moments(y, gap)] == [4.0, 1.0, 1.0]  # a gap in the mask is no step


def test_a_held_out_context_is_measured_as_if_it_had_been_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moments, "_COMMON", 0.0)
    u, owner = torch.randn(24, 2, 3, generator=rng(0)).double(), torch.arange(24) % 2
    u[:, 1] += 50.0  # so that the nearest is the own one
    _, _, found = _moments.density_of(u, owner)
    expected = []
    for i in range(24):
        rest = torch.arange(24) != i
        means = [u[rest & (owner == k), k].mean(0) for k in (0, 1)]
        residual = torch.cat([u[rest & (owner == k), k] - means[k] for k in (0, 1)])
        precision = torch.linalg.inv(residual.mT @ residual / (23 - 2))
        gap = u[i, owner[i]] - means[owner[i]]
        expected.append(0.5 * gap @ precision @ gap)
    whole_sample = _moments.density_of(u, owner)
    other = 0.5 * ((u - whole_sample[0]) @ whole_sample[1]).square().sum(-1)
    other[torch.arange(24), owner] = torch.stack(expected)
    torch.testing.assert_close(found, other.amin(1))


@pytest.fixture(scope="module")
def pictures() -> dict[str, Frames]:
    """Pictures as 16 patches each, projected to 8 numbers, and what may go wrong with them."""
    r = rng(3)
    projection = torch.randn(48, 8, generator=r)

    def clean(count: int) -> Tensor:
        coarse = torch.randn(count, 3, 8, 8, generator=r)
        return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear")

    def seen(images: Tensor) -> Frames:
        return whole(unfold(images, 4, stride=4).mT @ projection)

    new = clean(60)
    noise = torch.randn(60, 3, 16, 16, generator=r)
    spoilt = {"blurred": avg_pool2d(new, 9, 1, 4), "noise": 2 * noise, "blank": torch.full_like(new, 0.5)}
    spoilt |= {"black": new * 0 - 1.0, "loud": 3 * new, "frozen": new[:, :, :8, :8].tile(1, 1, 2, 2)}
    return {"train": seen(clean(300)), "held_out": seen(clean(100)), "new": seen(new)} | {
        name: seen(images) for name, images in spoilt.items()
    }


def densities(pictures: dict[str, Frames]) -> dict[str, FrameDensity]:
    groups, held_out = [pictures["train"].values.flatten(0, 1)], [pictures["held_out"]]
    return {"d": FrameDensity.fit(groups, held_out), "u": FrameDensity.fit(groups, held_out, moments=True)}


def test_spoilt_pictures_are_told_from_new_ones(pictures: dict[str, Frames]) -> None:
    density = densities(pictures)["u"]
    assert float((density(pictures["new"]) == 1.0).float().mean()) > 0.85
    reference = density.distance(pictures["new"])
    for name in ("blurred", "noise", "blank", "black", "loud", "frozen"):
        above = (density.distance(pictures[name])[:, None] > reference).float().mean()
        assert float(above) > 0.95, (name, float(above))


def test_frames_at_the_usual_distance_that_do_not_vary_are_foreign(pictures: dict[str, Frames]) -> None:
    """One frame in the place of all: the mean distance is an ordinary one, on both sides of which lies nothing odd."""
    both, values = densities(pictures), pictures["new"].values
    usual = (values.flatten(0, 1) - both["d"].means[0]) @ both["d"].whitening[0]
    typical = usual.square().mean(-1).sub(1).abs().topk(30, largest=False).indices
    frozen = whole(values.flatten(0, 1)[typical][:, None].expand(-1, 4, -1).contiguous())
    assert float(both["d"](frozen).min()) > 0.5
    assert float(both["u"](frozen).max()) < 0.01


def test_each_component_has_its_own_centre() -> None:
    """Kinds that vary differently: the loud kind's contexts are ordinary in it and would be odd in the other."""
    quiet, loud = contexts(100, 5, length=8), contexts(100, 9, length=8)
    loud = Frames(loud.values * 3 + 40.0, loud.mask)
    groups = [cloud(500, 1), cloud(500, 2) * 3 + 40.0]
    density = FrameDensity.fit(groups, [quiet, loud], moments=True)
    for kind, seed in ((1.0, 21), (3.0, 22)):
        fresh = contexts(100, seed, length=8)
        moved = Frames(fresh.values * kind + (40.0 if kind > 1 else 0.0), fresh.mask)
        assert float((density(moved) == 1.0).float().mean()) > 0.85


def test_what_an_older_density_says_stays_as_it_was_and_the_new_one_is_saved(tmp_path: Path) -> None:
    old = FrameDensity(D, 2)
    assert set(old.state_dict()) == {"means", "whitening", "limit", "tail"}
    assert old.config() == {"context_dim": D, "components": 2}
    density = fitted(CONTEXT, shifts=(0.0,), moments=True)
    again = FrameDensity(**density.config())
    again.load_state_dict(density.state_dict())
    frames = contexts(9, 4, CONTEXT, shift=2.0)
    assert torch.equal(again(frames), density(frames))
    guide = guide_of("cross_attention", density=density, scale=1.0)
    guide.reliability.missing = 0.25
    save(tmp_path / "adapter", guide.model, guide)
    model, loaded = load(tmp_path / "adapter", bert())
    a, b = (predict(*pair, heard(shift=2.0), num_samples=3) for pair in ((guide.model, guide), (model, loaded)))
    assert torch.equal(a.probs, b.probs)
    assert loaded.reliability.missing == 0.25
    assert loaded.reliability.density.moments


@pytest.mark.parametrize("kind", ["cross_attention", "pooled_context"])
def test_a_missing_context_may_be_as_foreign_as_any_other(kind: str) -> None:
    batch, found = heard(), {}
    for missing in (1.0, 0.0):
        guide = guide_of(kind, scale=1.3)
        guide.reliability.missing = missing
        found[missing] = [moments(guide, b)[guide.model.sites[0].name] for b in (batch, batch.without("audio"))]
    for loc, scale in found[0.0]:
        torch.testing.assert_close(loc[2], torch.zeros_like(loc[2]))  # the prior's mean
        torch.testing.assert_close(scale[2], torch.full_like(scale[2], 1.3))
    (trusted, _), (wide, _) = found[1.0][0], found[0.0][0]
    present = torch.tensor([0, 1, 3, 4])
    assert torch.equal(trusted[present], wide[present])
    assert not torch.isclose(trusted[2], wide[2]).all()


def test_errors() -> None:
    group: Any = [cloud(400, 0)]
    with refuses(ConfigError, "two_sided=True", "moments=True"):
        FrameDensity.fit(group, [contexts(30, 1)], two_sided=True, moments=True)
    with refuses(DataError, 12, 22, 21, "Hold out"):
        FrameDensity.fit(group * 12, [contexts(21, 1)], moments=True)
    for value in (-0.1, 1.1, float("nan")):
        with refuses(ConfigError, "missing", value):
            Reliability(fitted(), missing=value)
