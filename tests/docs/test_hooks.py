"""Pages that mkdocs makes: one per system with its source and its equations, and everything public in the API."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import bayes_adapters
from bayes_adapters.systems import PROCEDURES, SYSTEMS

pytest.importorskip("mkdocs", reason="the documentation's tools are not installed")
DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import hooks  # noqa: E402


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_page_of_a_system(name: str) -> None:
    page = hooks.system_page(name, DOCS)
    system = SYSTEMS[name]
    assert page.startswith(f"# {name}\n")
    assert system.source.rstrip(".") in page
    assert (system.inferred.rstrip(".") in page) == bool(system.inferred)
    assert "## What had to be guessed" in page or not system.inferred
    for cls in (system.model, system.guide):
        assert f".{cls.__name__}]" in page
    assert ":class:" not in page
    assert page.count("``") > 2, "the equations are code"
    assert "| lr |" in page


def test_a_page_names_the_results_of_its_system() -> None:
    assert "[script verification](../results/script-verification.md)" in hooks.system_page("caliber-x", DOCS)
    assert "sentiment" not in hooks.system_page("caliber-x", DOCS).partition("## Measured here")[2]


def test_the_index_has_every_name() -> None:
    index = hooks.systems_index()
    for name in (*SYSTEMS, *PROCEDURES):
        assert f"[{name}]({name}.md)" in index or f"`{name}`" in index, name


def test_everything_public_is_on_one_page_of_the_api() -> None:
    text = "\n".join(hooks.api_pages().values())
    entries = [line.removeprefix("::: ") for line in text.splitlines() if line.startswith("::: ")]
    assert len(entries) == len(set(entries))
    names = {entry.rpartition(".")[2] for entry in entries}
    public = {n for n, v in vars(bayes_adapters).items() if not n.startswith("_") and callable(v)}
    assert public <= names
    for guide in ("Contextual", "MeanField"):
        assert f"bayes_adapters.guides.{guide}" in entries


def test_a_doctest_in_a_docstring_becomes_a_block_of_code() -> None:
    text = "Text.\n\n>>> for i in (1, 2):\n...     print(i)\n1\n2\n\nMore [0.5] text."
    assert hooks.as_markdown(text) == (
        "Text.\n\n```pycon\n>>> for i in (1, 2):\n...     print(i)\n1\n2\n```\n\nMore [0.5] text."
    )
