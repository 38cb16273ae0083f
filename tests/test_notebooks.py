"""The notebooks in the repository are what their sources say, and were run without an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.notebooks import run
from tests.refusals import refuses

FOLDER = Path(run.FOLDER)


def test_there_are_five() -> None:
    assert len(run.names()) == 5
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(run.names())


@pytest.mark.parametrize("name", run.names())
def test_a_notebook_is_its_source_with_outputs(name: str) -> None:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    written = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert written == run.cells((FOLDER / f"{name}.py").read_text(encoding="utf-8")), "run `make notebooks`"
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    assert all(output["output_type"] != "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert any(output["output_type"] == "stream" for output in outputs), "no number"


def test_an_error_in_a_cell_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("nbclient.exceptions")
    (tmp_path / "1_wrong.py").write_text("# %%\n1 / 0\n")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert run.names() == ["1_wrong"]
    with refuses(exceptions.CellExecutionError, "1 / 0"):
        run.run("1_wrong")
