"""Every guide × model × prior × task × backbone of the matrix, tried; ``results/matrix.md`` says what must come out."""

from __future__ import annotations

import pytest
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, guides, likelihoods, models, systems
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods import Likelihood
from examples.studies import matrix
from examples.studies.matrix import FILE, REASONS, WORKS, Cell, attempt, cells, parse, render
from examples.studies.tiny import make

TEXT = FILE.read_text()
WRITTEN = parse(TEXT)


@pytest.mark.parametrize("cell", cells(), ids=" - ".join)
def test_the_outcome_is_the_one_in_the_file(cell: Cell) -> None:
    assert attempt(cell) == WRITTEN.get(cell), "run `python -m examples.studies.matrix` if this is meant"


def test_the_file_is_up_to_date() -> None:
    assert list(WRITTEN) == cells(), "run `python -m examples.studies.matrix`"
    assert render(WRITTEN) == TEXT, "run `python -m examples.studies.matrix`"
    assert set(WRITTEN.values()) - {WORKS} <= set(REASONS)


def test_everything_that_is_exported_is_in_it() -> None:
    def exported(module: object, base: type) -> set[type]:
        found = {v for k, v in vars(module).items() if isinstance(v, type) and not k.startswith("_")}
        return {cls for cls in found if issubclass(cls, base) and cls is not base}

    assert exported(guides, AdapterGuide) == {cls for cls, _ in matrix._GUIDES.values()}
    assert exported(models, AdapterModel) == {cls for cls, _ in matrix._MODELS.values()}
    assert {cls.__name__ for cls in exported(likelihoods, Likelihood) if cls.__name__[0] != "_"} == set(matrix.TASKS)
    assert {cell.row for cell in WRITTEN if cell.table == "Systems and tasks"} == set(systems.names())


@pytest.mark.parametrize("structure", matrix._MODELS)
def test_what_is_refused_follows_from_what_guides_say_they_serve(structure: str) -> None:
    several = structure in ("ConcatLoRA", "CoLA", "Wander")
    model_type, options = matrix._MODELS[structure]
    model = model_type(
        make(matrix.PAIR if several else "BERT"), matrix.Bernoulli(), **(matrix._rank(structure) | options)
    )
    for name, (guide, _) in matrix._GUIDES.items():
        fits = all(site.granularity in guide.serves and site.part in guide.parts for site in model.sites)
        served = fits and (bool(model.sites) or not guide.needs_sites)
        assert (WRITTEN[Cell("Guides and models", name, structure)] == WORKS) == served, name


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
    monkeypatch.setattr(matrix, "trial", lambda _: matrix.Trial(found.backbone, found.targets, refuse))
    with pytest.raises(ConfigError, match="something new"):
        attempt(cells()[0])


def test_training_that_does_not_help_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_train", lambda *_: (1.0, 1.0))
    with pytest.raises(RuntimeError, match=r"took the loss from 1\.0000 to 1\.0000"):
        attempt(cells()[0])


def test_a_loaded_adapter_that_predicts_otherwise_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(folder: str, backbone: nn.Module) -> tuple[AdapterModel, AdapterGuide]:
        model, guide = matrix_load(folder, backbone)
        model.head.bias.data += 1.0
        return model, guide

    matrix_load = matrix.load
    monkeypatch.setattr(matrix, "load", spoiled)
    with pytest.raises(RuntimeError, match="does not predict the same"):
        attempt(cells()[0])
