"""Every guide × model × prior × task × backbone of the matrix, tried; ``results/matrix.md`` says what must come out.

A guide, model or likelihood that the file does not know yet must work, or be refused for a listed reason; the file is
written again when somebody calls its command.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Granularity, guides, likelihoods, models, systems
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.guide import site_key
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Part, SiteCall
from examples.studies import matrix, matrix_cells
from examples.studies.matrix import FILE, REASONS, WORKS, attempt, parse, render
from examples.studies.matrix_cells import Cell, cells
from examples.studies.tiny import make
from tests.refusals import refuses

TEXT = FILE.read_text()
WRITTEN = parse(TEXT)


@pytest.mark.parametrize("cell", cells(), ids=" - ".join)
def test_the_outcome_is_the_one_in_the_file(cell: Cell) -> None:
    outcome = attempt(cell)  # refuses in a way that is not listed: an error
    assert outcome == WRITTEN.get(cell, outcome), "run `python -m examples.studies.matrix` if this is meant"


def test_the_file_is_up_to_date() -> None:
    assert [cell for cell in cells() if cell in WRITTEN] == list(WRITTEN), "run `python -m examples.studies.matrix`"
    assert render(WRITTEN) == TEXT, "run `python -m examples.studies.matrix`"
    assert set(WRITTEN.values()) - {WORKS} <= set(REASONS)


def test_everything_that_is_exported_is_in_it() -> None:
    def exported(module: object, base: type) -> set[type]:
        found = {v for k, v in vars(module).items() if isinstance(v, type) and not k.startswith("_")}
        return {cls for cls in found if issubclass(cls, base) and cls is not base}

    assert exported(guides, AdapterGuide) == {cls for cls, _ in matrix_cells.GUIDES.values()}
    assert exported(models, AdapterModel) == {cls for cls, _ in matrix_cells.MODELS.values()}
    assert {cls.__name__ for cls in exported(likelihoods, Likelihood)} == {
        *matrix_cells.TASKS,
        "Tasks",
        "NextToken",  # needs a language model
    }
    assert {cell.row for cell in cells() if cell.table == "Systems and tasks"} == set(systems.names())


class Sided(AdapterGuide):
    """A mean field with one standard deviation for everything."""

    name: ClassVar[str] = "sided"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.CORE})

    def __init__(self, model: AdapterModel, *, num_data: int) -> None:
        super().__init__(model)
        self.num_data = num_data
        self.loc = nn.ParameterDict({site_key(site): nn.Parameter(model.start(site)) for site in model.sites})

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        return dist.Normal(self.loc[site_key(call.site)], 0.1).to_event(len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {"num_data": self.num_data}


def test_a_new_guide_gets_rows_without_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file in ``guides/`` would be found: the registry lists it, and it is tried with what it needs."""
    monkeypatch.setattr(Sided, "__module__", "bayes_adapters.guides.sided")
    monkeypatch.setattr(matrix_cells.registry, "names", lambda kind: ["mean_field", "sided"])
    monkeypatch.setattr(
        matrix_cells.registry, "find", lambda kind, name: {"mean_field": guides.MeanField, "sided": Sided}[name]
    )
    assert list(matrix_cells._unlisted("guide", AdapterGuide, [guides.MeanField])) == [Sided]
    monkeypatch.setitem(matrix_cells.GUIDES, "Sided", (Sided, matrix_cells._needed(Sided)))
    assert matrix_cells.GUIDES["Sided"][1] == {"num_data": matrix_cells.SIZE}
    assert matrix_cells._natural("Sided") == "StochasticCore global"
    trial = matrix.trial(Cell("Guides and models", "Sided", "StochasticCore global"))
    model, guide = trial.build(make(trial.backbone))
    assert isinstance(guide, Sided)
    assert matrix._train(model, guide, matrix.batch(trial.backbone, trial.targets))[0] > 0
    assert attempt(Cell("Guides and models", "Sided", "StochasticCore token")) == "a"
    assert attempt(Cell("Guides and models", "Sided", "StochasticDown")) == "b"


def test_targets_of_a_new_likelihood_are_in_its_support() -> None:
    for name in ("Bernoulli", "Categorical", "Gaussian"):
        likelihood = matrix_cells.TASKS[name]()
        likelihood.check(matrix_cells._drawn(likelihood))


@pytest.mark.parametrize("structure", matrix_cells.MODELS)
def test_what_is_refused_follows_from_what_guides_say_they_serve(structure: str) -> None:
    several = issubclass(matrix_cells.MODELS[structure][0], models.ConcatLoRA)
    model_type, options = matrix_cells.MODELS[structure]
    model = model_type(
        make(matrix_cells.PAIR if several else "BERT"),
        matrix_cells.Bernoulli(),
        **(matrix_cells._rank(structure) | options),
    )
    for name, (guide, _) in matrix_cells.GUIDES.items():
        fits = all(site.granularity in guide.serves and site.part in guide.parts for site in model.sites)
        served = fits and (bool(model.sites) or not guide.needs_sites)
        cell = Cell("Guides and models", name, structure)
        assert (WRITTEN.get(cell, WORKS if served else "") == WORKS) == served, name


def test_asking_for_help_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["matrix", "--help"])
    monkeypatch.setattr(matrix, "cells", lambda: pytest.fail("the cells were tried"))
    with pytest.raises(SystemExit) as ended:
        matrix.main()
    assert ended.value.code == 0


def test_an_unlisted_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(backbone: nn.Module) -> tuple[AdapterModel, AdapterGuide]:
        raise ConfigError("something new")

    found = matrix.trial(cells()[0])
    monkeypatch.setattr(matrix, "trial", lambda _: matrix_cells.Trial(found.backbone, found.targets, refuse))
    with refuses(ConfigError, "something new"):
        attempt(cells()[0])


def test_training_that_does_not_help_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_train", lambda *_: (1.0, 1.0))
    with refuses(RuntimeError, str(cells()[0]), "1.0000"):
        attempt(cells()[0])


def test_a_loaded_adapter_that_predicts_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(folder: str, backbone: nn.Module) -> tuple[AdapterModel, AdapterGuide]:
        model, guide = matrix_load(folder, backbone)
        model.head.bias.data += 1.0
        return model, guide

    matrix_load = matrix.load
    monkeypatch.setattr(matrix, "load", spoiled)
    with refuses(RuntimeError, str(cells()[0])):
        attempt(cells()[0])
