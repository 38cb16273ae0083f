"""Every ``python`` block of the documentation runs, one page's blocks after another in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.internals import only_registered

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = {
    path.relative_to(ROOT).as_posix(): blocks
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if (blocks := BLOCK.findall(path.read_text(encoding="utf-8")))
}


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is registered before a page runs, and nothing of it afterwards."""
    only_registered(monkeypatch)


def test_there_are_pages_with_code() -> None:
    assert {"docs/index.md", "docs/your-data.md", "docs/pyro.md", "docs/extending/guide.md"} <= set(PAGES)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.usefixtures("offline", "no_names")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(PAGES[page], 1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)
