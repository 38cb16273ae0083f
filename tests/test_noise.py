"""The noise of prediction: a function of its coordinates, uniform, independent and never infinite."""

from __future__ import annotations

import math
import zlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes_adapters.guides import MeanField
from bayes_adapters.inference import keyed_noise
from bayes_adapters.inference.handlers import KeyedDraws, keyed_uniform
from tests.helpers import core_model, token_batch

S, B, N = torch.arange(8), torch.arange(10), 500


def uniforms(seed: int = 0, site: str = "core.a", samples: Tensor = S, examples: Tensor = B, count: int = N) -> Tensor:
    return keyed_uniform(seed, site, samples, examples, count, torch.device("cpu"))


def test_keyed_uniform_is_uniform() -> None:
    u = uniforms().flatten().double().sort().values
    n = len(u)
    assert u[0] > 0.0
    assert u[-1] < 1.0
    grid = torch.arange(1, n + 1) / n
    distance = torch.maximum((grid - u).abs(), (u - grid + 1 / n).abs()).max().item()
    assert math.sqrt(n) * distance < 1.95, "Kolmogorov-Smirnov, p < 0.001"
    assert u.var().item() == pytest.approx(1 / 12, rel=0.02)
    normal = torch.special.ndtri(u)
    assert (normal**4).mean().item() == pytest.approx(3.0, rel=0.1)


def test_keyed_uniform_is_independent_across_coordinates() -> None:
    a = uniforms()
    pairs = {
        "seed": (a, uniforms(seed=1)),
        "site": (a, uniforms(site="core.b")),
        "sample": (a, a.roll(1, 0)),
        "example": (a, a.roll(1, 1)),
        "entry": (a, a.roll(1, 2)),
        "sample and example": (a[:8, :8], a[:8, :8].transpose(0, 1)),
        "seed against sample": (a[1:], uniforms(seed=1)[:-1]),
    }
    for name, (x, y) in pairs.items():
        both = torch.stack([x.flatten(), y.flatten()]).double()
        if name == "sample and example":  # the diagonal pairs each value with itself
            keep = ~torch.eye(8, dtype=torch.bool)[:, :, None].expand_as(x).flatten()
            both = both[:, keep]
        correlation = torch.corrcoef(both)[0, 1].item()
        assert abs(correlation) < 4 / math.sqrt(both.shape[1]), name
    assert len(a.unique()) > 0.99 * a.numel()


def test_keyed_uniform_depends_on_coordinates_only() -> None:
    a = uniforms()
    assert torch.equal(uniforms(samples=S[3:5], examples=B[[7, 2]], count=20), a[3:5][:, [7, 2]][..., :20])


def test_keyed_uniform_is_frozen() -> None:
    """Saved predictions must be reproducible by later versions: SplitMix64 written again with Python's integers."""
    full = (1 << 64) - 1

    def mix(v: int) -> int:
        v = ((v ^ (v >> 30)) * 0xBF58476D1CE4E5B9) & full
        v = ((v ^ (v >> 27)) * 0x94D049BB133111EB) & full
        return v ^ (v >> 31)

    def value(seed: int, site: str, sample: int, example: int, entry: int) -> float:
        gold = 0x9E3779B97F4A7C15
        key = mix((mix((seed * gold + zlib.crc32(site.encode())) & full) + sample) & full)
        key = mix((key + mix(example)) & full)
        return ((mix((key + (entry + 1) * gold) & full) >> 41) + 0.5) / 2**23

    found = uniforms(seed=12345)
    for s, b, i in ((0, 0, 0), (3, 7, 499), (7, 9, 123)):
        assert found[s, b, i].item() == pytest.approx(value(12345, "core.a", s, b, i), abs=2**-25)


def test_no_uniform_is_zero_or_one() -> None:
    """A draw of 1 has an infinite quantile; at 1 in 2^24 it would come up every few predictions."""

    def before(bits: int) -> int:
        """What the hash maps to ``bits``, its last step left out: each step undone, the last first."""
        for shift, factor in ((27, 0x94D049BB133111EB), (30, 0xBF58476D1CE4E5B9)):
            bits = bits * pow(factor, -1, 1 << 64) % (1 << 64)
            bits ^= (bits >> shift) ^ (bits >> 2 * shift)
        return bits - (1 << 64) if bits >> 63 else bits

    value = torch.tensor([before(0), before((1 << 64) - 1)])
    u = keyed_noise._uniform(value)
    assert u.tolist() == [2.0**-24, 1.0 - 2.0**-24]
    assert torch.isfinite(dist.Normal(0.0, 1.0).icdf(u)).all()


@pytest.mark.parametrize("entries", [3000, 50_000, "of each example"])
def test_blocks_are_the_whole(entries: int | str) -> None:
    """What is computed block by block is what smaller calls give, wherever a block ends."""
    own = torch.randint(1 << 40, (10, 1700)) if isinstance(entries, str) else None
    numbers: int | Tensor = entries if isinstance(entries, int) else own  # type: ignore[assignment]
    whole = keyed_uniform(3, "core", S, B, numbers, torch.device("cpu"))
    for s, b in ((0, 0), (3, 9), (7, 4)):
        each = numbers if isinstance(numbers, int) else numbers[b : b + 1]
        one = keyed_uniform(3, "core", S[s : s + 1], B[b : b + 1], each, torch.device("cpu"))
        assert torch.equal(whole[s, b], one[0, 0]), (s, b)


def test_draws_have_the_posteriors_moments() -> None:
    model = core_model("global", rank=2)
    guide = MeanField(model, init_scale=0.3)
    with torch.no_grad(), KeyedDraws(0, torch.arange(4000), torch.arange(1)), pyro.plate("samples", 4000, dim=-2):
        guide(token_batch(1, 2))
    value = guide.trace.nodes["core.global"]["value"]
    value = value.reshape(4000, 4, 2, 2)
    loc = guide.loc["core-global"].detach()
    torch.testing.assert_close(value.mean(0), loc, rtol=0, atol=4 * 0.3 / math.sqrt(4000))
    torch.testing.assert_close(value.std(0), torch.full_like(loc, 0.3), rtol=0.05, atol=0)
