"""Without greenlet everything works but what runs encoders in lock-step; that says how to install it."""

from __future__ import annotations

import tomllib

from tests.without import ROOT, run_without

USE = """
from bayes_adapters import ELBO, Categorical, models
from bayes_adapters.errors import MissingResourceError
from bayes_adapters.modalities.lockstep import run
from examples.studies.matrix_cells import PAIR
from examples.studies.tiny import make
from tests.systems.parts import NAMES, small

for name in NAMES:
    try:
        model, guide, data = small(name)
        assert ELBO(model, guide)(data).isfinite(), name
    except MissingResourceError as error:
        print(name, "|", error)
lengths = {"first": 2, "second": 2}
uses = {
    "every layer": lambda: models.Wander(make(PAIR), Categorical(2), num_data=4, lengths=lengths, every_layer=True),
    "run": lambda: run({"first": make("BERT")}, {"first": {}}, {}, lambda step, streams: {}),
}
for name, use in uses.items():
    try:
        use()
    except MissingResourceError as error:
        print(name, "|", error)
"""


def test_only_what_runs_in_lock_step_needs_greenlet() -> None:
    said = dict(line.split(" | ") for line in run_without("greenlet", USE))
    assert list(said) == ["cola", "bayesian-cola", "every layer", "run"]
    for line in said.values():
        assert "greenlet" in line
        assert line.endswith("pip install '.[cola]'")


def test_greenlet_is_an_extra_and_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not [needed for needed in project["dependencies"] if "greenlet" in needed]
    assert [needed for needed in extras["cola"] if needed.startswith("greenlet")]
    assert all("cola" in own for own in (extras["demo"][0], extras["dev"][0]))
