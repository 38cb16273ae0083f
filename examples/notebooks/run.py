"""Notebooks from readable sources: ``NAME.py``, in cells that begin with ``# %%``, becomes ``NAME.ipynb``.

    python -m examples.notebooks.run [--check] [NAME ...]

Every notebook is run from its first cell to its last in a fresh kernel, in the root of the checkout; an error in a cell
is an error of this command, and nothing is written then; nor with ``--check``, which only runs them.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)


def names() -> list[str]:
    """Return the names of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))


def cells(source: str) -> list[tuple[str, str]]:
    r"""Return (``"markdown"`` or ``"code"``, text) of every cell of a source.

    >>> cells("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n")
    [('markdown', '# Title\n\nText.'), ('code', 'x = 1')]
    """
    parts = CELL.split(source)[1:]
    found = []
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in mark:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            found.append(("markdown", "\n".join(lines)))
        else:
            found.append(("code", body.strip()))
    return found


def build(name: str) -> Any:
    """Return the notebook of a source, not yet run."""
    from nbformat import v4

    notebook = v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    for number, (kind, text) in enumerate(cells((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
        notebook.cells.append(make[kind](text, id=f"cell-{number}"))
    return notebook


def run(name: str, timeout: int = 900) -> Any:
    """Return the notebook of a source with its outputs; raises nbclient's ``CellExecutionError``."""
    from nbclient import NotebookClient

    notebook = build(name)
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # when each cell ran: it would differ at every run
        if cell.cell_type == "code":  # progress bars and notes, not results
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> int:
    """Run the notebooks that are named, or all, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*names(), []], metavar="NAME")
    parser.add_argument("--check", action="store_true", help="run them and write nothing")
    arguments = parser.parse_args()
    for name in arguments.names or names():
        import nbformat

        start = time.monotonic()
        notebook = run(name)
        if not arguments.check:
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
