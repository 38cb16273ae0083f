"""How far a context is from training, and how much of the posterior is believed there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayes_adapters import Frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.reliability import FrameDensity
from tests.refusals import refuses
from tests.reliability.parts import D, cloud, contexts, fitted


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_the_distance_is_the_mean_mahalanobis_distance_to_the_nearest_component(ridge: float) -> None:
    density, frames = fitted(ridge=ridge), contexts(30, 7, shift=3.0)
    per_component = []
    for k, shift in enumerate((0.0, 20.0)):
        group = cloud(400, k, D, shift).double()
        covariance = (group - group.mean(0)).T @ (group - group.mean(0)) / 399
        covariance += ridge * covariance.trace() / D * torch.eye(D)
        centred = frames.values.double() - group.mean(0)
        squared = (centred * torch.linalg.solve(covariance, centred.mT.reshape(30, D, 6)).mT).sum(-1)
        gaussian = MultivariateNormal(group.mean(0), covariance)
        peak = gaussian.log_prob(group.mean(0))
        torch.testing.assert_close(squared, 2 * (peak - gaussian.log_prob(frames.values.double())))
        per_component.append([float(squared[b][frames.mask[b]].mean()) / D for b in range(30)])
    expected = torch.tensor(per_component).amin(0)
    torch.testing.assert_close(density.distance(frames), expected, rtol=1e-4, atol=1e-4)


def test_the_nearest_component_counts_for_the_whole_context() -> None:
    near_second = contexts(8, 5, shift=20.0)
    both, first = fitted(), fitted(shifts=(0.0,))
    second = fitted(shifts=(20.0,))
    second.means.copy_(both.means[1:])
    second.whitening.copy_(both.whitening[1:])
    torch.testing.assert_close(both.distance(near_second), second.distance(near_second))
    assert bool((first.distance(near_second) > 5 * both.distance(near_second)).all())
    # a context half of which is near each is far from both
    halves = Frames(torch.cat([cloud(3, 1), cloud(3, 2, shift=20.0)])[None], torch.ones(1, 6, dtype=torch.bool))
    assert float(both.distance(halves)) > 5


def test_masked_frames_have_no_distance_however_large_they_are() -> None:
    density, frames = fitted(), contexts(12, 3)
    huge = frames.values.masked_fill(~frames.mask[..., None], 3e38)
    padded = Frames(
        torch.cat([huge, torch.full((12, 4, D), -1e30)], 1), torch.cat([frames.mask, frames.mask.new_zeros(12, 4)], 1)
    )
    torch.testing.assert_close(density.distance(padded), density.distance(frames))
    changed = frames.values.clone()
    changed[:, 0] += 10.0
    assert bool((density.distance(Frames(changed, frames.mask)) != density.distance(frames)).all())


def test_gamma_is_one_up_to_the_limit_and_then_falls_exponentially() -> None:
    density = FrameDensity(2, 1)
    density.limit.fill_(1.5)
    density.tail.fill_(0.25)
    lengths = torch.tensor([0.0, 1.0, 3.0, 3.5, 4.0])
    values = torch.stack([lengths.sqrt(), torch.zeros(5)], -1)[:, None]
    frames = Frames(values, torch.ones(5, 1, dtype=torch.bool))  # d = |a|² / 2
    gamma = density(frames)
    torch.testing.assert_close(gamma, torch.tensor([1.0, 1.0, 1.0, torch.e**-1, torch.e**-2]))
    assert float(gamma[0]) == 1.0


@pytest.mark.parametrize("width", [8, 64])
def test_frames_that_hardly_vary_are_as_foreign_as_frames_far_away(width: int) -> None:
    torch.manual_seed(0)

    def at(scale: float) -> Frames:
        return Frames(scale * torch.randn(40, 25, width), torch.ones(40, 25, dtype=torch.bool))

    density = FrameDensity.fit([torch.randn(4000, width)], [at(1.0)])
    assert float(density(at(1.0)).mean()) > 0.9
    assert [float(density(at(scale)).max()) < 0.05 for scale in (0.0, 0.3, 2.0, 10.0)] == [True] * 4
    one_sided = FrameDensity.fit([torch.randn(4000, width)], [at(1.0)], two_sided=False)
    assert float(one_sided(at(0.0)).min()) == 1.0
    assert "two_sided" not in one_sided.config()
    assert FrameDensity(**density.config()).load_state_dict(density.state_dict())


def test_missing_context_is_trusted_and_an_infinitely_far_one_is_not() -> None:
    density = fitted()
    values = torch.full((2, 3, D), 1e30)
    mask = torch.tensor([[False] * 3, [True] * 3])
    assert density(Frames(values, mask)).tolist() == [1.0, 0.0]
    mask[0, 0] = True
    for found in (density, fitted(moments=True)):
        for value in (torch.nan, torch.inf):
            values[0] = value
            assert found(Frames(values, mask)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("quantile", [None, 0.75])
def test_the_limit_lets_the_wanted_share_of_contexts_like_those_of_training_pass(quantile: float | None) -> None:
    density = fitted() if quantile is None else fitted(quantile=quantile)
    fresh = Frames(
        *(torch.cat(t) for t in zip(*[_parts(contexts(1000, 800 + s, shift=s)) for s in (0, 20)], strict=True))
    )
    share = float((density(fresh) == 1.0).float().mean())
    wanted = (0.95 if quantile is None else quantile) - 0.01  # a hundredth lies below the lower limit
    assert abs(share - wanted) <= (0.03 if quantile is None else 0.06)  # 400 held-out contexts: ±1 % and ±2 %
    distances = density.distance(fresh)
    assert float(distances.median()) == pytest.approx(float(fitted().limit - density.tail), rel=0.1)
    assert float(distances.mean()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("quantile", "needed"), [(0.95, 20), (0.75, 20), (0.99, 100)])
def test_a_quantile_needs_enough_held_out_contexts(quantile: float, needed: int) -> None:
    assert bool(FrameDensity.fit([cloud(30, 0)], [contexts(needed, 1)], quantile=quantile).limit.isfinite())
    with refuses(DataError, max(quantile, 0.95), needed, needed - 1):
        FrameDensity.fit([cloud(30, 0)], [contexts(needed - 1, 1)], quantile=quantile)


@pytest.mark.parametrize("quantile", [0.5, 0.0, 1.0, 95.0, float("nan")])
def test_a_limit_lies_above_the_median(quantile: float) -> None:
    with refuses(ConfigError, "quantile", 0.5, 1, quantile):
        FrameDensity.fit([cloud(30, 0)], [contexts(30, 1)], quantile=quantile)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_frames_than_span_the_space_are_refused(count: int) -> None:
    """N frames about their mean span N − 1 dimensions: the covariance of D or fewer is singular without its ridge."""
    with refuses(DataError, "Group 1", count, 4, 5, "reliability="):
        FrameDensity.fit([cloud(30, 0), cloud(count, 1)], [contexts(30, 2)])
    enough = FrameDensity.fit([cloud(30, 0), cloud(5, 1)], [contexts(30, 2)])
    assert bool(enough.whitening.isfinite().all())


@pytest.mark.parametrize("spoilt", [float("inf"), float("nan"), 1e30])
def test_held_out_contexts_without_a_finite_distance_are_refused(spoilt: float) -> None:
    held_out = contexts(25, 1)
    held_out.values[:3, 0] = spoilt
    with refuses(DataError, "3 of 25"):
        FrameDensity.fit([cloud(30, 0)], [held_out])


def _parts(frames: Frames) -> tuple[Tensor, Tensor]:
    return frames.values, frames.mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_frames_of_other_precision(dtype: torch.dtype) -> None:
    density, frames = fitted(), contexts(10, 4)
    found = density.distance(Frames(frames.values.to(dtype), frames.mask))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, density.distance(frames), rtol=0.05, atol=0.05)
    low = FrameDensity.fit([cloud(400, 0).to(dtype)], [contexts(40, 9)])
    assert {b.dtype for b in low.buffers()} == {torch.float32}
    torch.testing.assert_close(low.means[0], cloud(400, 0).mean(0), rtol=0.05, atol=0.05)


def test_fit_keeps_no_graph_and_stores_no_parameters() -> None:
    density = FrameDensity.fit([cloud(50, 0).requires_grad_()], [contexts(30, 1)])
    assert not any(b.requires_grad for b in density.buffers())
    assert list(density.parameters()) == []


def test_an_unfitted_density_trusts_nothing_silently() -> None:
    frames = contexts(3, 1)
    for density in (FrameDensity(D, 2), fitted()):
        density.limit.fill_(torch.inf)
        with refuses(ConfigError, "FrameDensity.fit"):
            density(frames)


def test_errors_of_fit() -> None:
    good, held_out = cloud(30, 0), contexts(25, 1)
    with refuses(DataError, "group", "none"):
        FrameDensity.fit([], [held_out])
    with refuses(DataError, "Group 1", 1, 4, 5):
        FrameDensity.fit([good, good[:1]], [held_out])
    with refuses(DataError, 0.95, 20, 0):
        FrameDensity.fit([good], [])
    silent = Frames(held_out.values, held_out.mask & (torch.arange(25) < 19)[:, None])
    with refuses(DataError, 0.95, 20, 19):
        FrameDensity.fit([good], [silent])
    with refuses(DataError, [3, 4]):
        FrameDensity.fit([good, good[:, :3]], [held_out])
    with refuses(DataError, "group 1"):
        FrameDensity.fit([good, torch.ones(5, D)], [held_out])
    with refuses(DataError, "group 0"):
        FrameDensity.fit([good.index_fill(0, torch.tensor([3]), torch.nan)], [held_out])
    with refuses(ConfigError, "component", 0):
        FrameDensity(D, 0)


_PLAIN = """
import torch
from bayes_adapters import Frames
from bayes_adapters.errors import BayesAdaptersError
from bayes_adapters.reliability import FrameDensity, Reliability

heard = Frames(torch.randn(30, 6, 4), torch.ones(30, 6, dtype=torch.bool))
group = torch.randn(30, 4)
for call in (
    lambda: FrameDensity.fit([torch.zeros(5, 6, 4)], [heard]),
    lambda: FrameDensity.fit([torch.zeros(30, 4, dtype=torch.int32)], [heard]),
    lambda: FrameDensity.fit([heard], [heard]),
    lambda: FrameDensity.fit([group], [heard.values]),
    lambda: Reliability(FrameDensity(4, 1), "widen", "1"),
    lambda: Reliability(FrameDensity(4, 1), "widen", torch.tensor(1.0)),
    lambda: FrameDensity.fit(iter([group]), iter([heard])),  # read twice, an iterator was empty
):
    try:
        print(type(call()).__name__)
    except BayesAdaptersError as error:
        print(error)
"""


def test_what_is_no_matrix_of_frames_or_no_number_is_said() -> None:
    """Without this suite's type checks, as users run it: these were raw errors, or a scale that no file could hold."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", _PLAIN], cwd=root, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    says = ["got torch.float32 (5, 6, 4)", "got torch.int32 (30, 4)", "frames.values[frames.mask]"]
    says += ["held_out[0] must be Frames(values, mask); got a Tensor"] + ["positive, finite number, or None"] * 2
    assert len(lines) == len(says) + 1
    for line, phrase in zip(lines, says, strict=False):
        assert phrase in line
    assert lines[-1] == "FrameDensity"
