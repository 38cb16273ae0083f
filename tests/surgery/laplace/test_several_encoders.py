"""Models of several encoders: the factors of Wander have weights, and CoLA's last layer stands beside its own guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import load, predict, save
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from examples.studies.matrix_cells import PAIR, build_system
from examples.studies.tiny import batch, make

pytestmark = pytest.mark.filterwarnings("ignore:The adapter is not at an optimum", "ignore:The best prior precision")


@pytest.mark.parametrize(("system", "posterior"), [("wander", laplace), ("cola", last_layer_laplace)])
def test_a_posterior_is_made_saved_and_loaded(system: str, posterior: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, guide = build_system(system, make(PAIR), "Bernoulli")
    data = batch(PAIR, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    new, random, log = posterior(model, guide, data, prior_precision=1.0)
    before, after = (predict(*pair, data, mean_only=True).mean for pair in ((model, guide), (new, random)))
    torch.testing.assert_close(after, before)
    answer = predict(new, random, data)
    assert log.determined > 0
    assert answer.epistemic.max() > 0
    save(tmp_path / "adapter", new, random)
    assert torch.equal(predict(*load(tmp_path / "adapter", make(PAIR)), data).mean, answer.mean)
