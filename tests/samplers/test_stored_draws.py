"""A posterior that is its draws: each is used once, all sites together, and a file keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, load, predict, save
from bayes_adapters.analysis.width import relative_widths
from bayes_adapters.distributions import Points
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import StoredDraws
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses

BATCH, COUNT = token_batch(), 6


def stored(**options: Any) -> tuple[Any, StoredDraws, dict[str, torch.Tensor]]:
    model = core_model("global", rank=2, num_data=5, **options)
    torch.manual_seed(4)
    samples = {site.name: torch.randn(COUNT, *site.shape) for site in model.sites}
    return model, StoredDraws.of(model, samples), samples


def rows(samples: Any) -> list[list[float]]:
    return sorted([round(v, 5) for v in row] for row in samples.flatten(1).tolist())


def test_every_draw_is_used_once_and_all_sites_come_from_one() -> None:
    """The predictions are those of the same draws as a dictionary, in an order of the seed's."""
    model, guide, samples = stored(grouped=False)
    assert len(model.sites) > 1
    own = predict(model, guide, BATCH, num_samples=COUNT, return_samples=True)
    given = predict(model, samples, BATCH, return_samples=True)
    assert rows(own.samples) == rows(given.samples)
    torch.testing.assert_close(own.mean, given.mean)
    other = predict(model, guide, BATCH, num_samples=COUNT, return_samples=True, seed=1).samples
    assert rows(other) == rows(own.samples)
    assert not torch.equal(other, own.samples)  # type: ignore[arg-type]
    few = rows(predict(model, guide, BATCH, num_samples=4, return_samples=True).samples)
    assert len({tuple(row) for row in few}) == 4
    chunked = predict(model, guide, BATCH, num_samples=COUNT, return_samples=True, chunk_size=4).samples
    torch.testing.assert_close(chunked, own.samples)
    free = predict(model, guide, BATCH, num_samples=40, return_samples=True, seed=None).samples
    assert all(row in rows(own.samples) for row in rows(free)), "torch's generator draws with replacement"


def test_moments_points_and_a_temperature() -> None:
    model, guide, samples = stored()
    (site,) = model.sites
    flat = samples[site.name].flatten(1)
    q = guide.joint()
    torch.testing.assert_close(q.mean, flat.mean(0))
    torch.testing.assert_close(q.variance, flat.var(0, correction=0))
    centre = {site.name: samples[site.name].mean(0, keepdim=True)}
    torch.testing.assert_close(predict(model, guide, BATCH, mean_only=True).mean, predict(model, centre, BATCH).mean)
    drawn = weight_draw(model, guide, 2)[site.name]
    assert any(torch.equal(drawn, one) for one in samples[site.name])
    width = float((q.variance.sqrt() / 0.2).median())
    assert relative_widths(model, guide, BATCH) == {site.name: pytest.approx(width)}
    cold = {site.name: torch.lerp(centre[site.name], samples[site.name], 0.5)}
    torch.testing.assert_close(
        predict(model, guide, BATCH, num_samples=COUNT, temperature=0.25).mean, predict(model, cold, BATCH).mean
    )
    assert Points(flat).expand((3, 1)).sample((2,)).shape == (2, 3, 1, 16)
    single = StoredDraws(model)
    assert single.deterministic
    assert predict(model, single, BATCH).epistemic.max() == 0.0


def test_a_file_keeps_them_and_fit_trains_what_is_left(tmp_path: Path) -> None:
    model, guide, _ = stored()
    before = guide.values.clone()
    history = fit(model, guide, BATCH, epochs=5, progress=False, kl_weight=0.0).history
    assert history[-1]["nll"] < history[0]["nll"]
    assert torch.equal(guide.values, before)
    assert not list(guide.parameters())
    kl = ELBO(model, guide).terms(BATCH).kl
    assert not kl.requires_grad
    save(tmp_path, model, guide)
    again = load(tmp_path, bert())
    assert torch.equal(predict(*again, BATCH).mean, predict(model, guide, BATCH).mean)


def test_draws_that_do_not_fit() -> None:
    model, _, samples = stored()
    (name,) = samples
    with refuses(ConfigError, name, (COUNT, 4), (4, 2, 2)):
        StoredDraws.of(model, {name: samples[name][:, :, 0, 0]})
    with refuses(ConfigError, name):
        StoredDraws.of(model, {"other": samples[name]})
    with refuses(ConfigError, "num_draws", 0):
        StoredDraws(model, num_draws=0)
    with refuses(ConfigError, "token"):
        StoredDraws(core_model("token", rank=2))
