"""A griffe extension: docstrings as Markdown. Sphinx's roles become code, doctests become fenced blocks."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")


def as_markdown(text: str) -> str:
    r"""Return a docstring as Markdown.

    >>> as_markdown("See :class:`~a.b.C`, :func:`f`.")
    'See `C`, `f`.'
    >>> as_markdown("Formula::").endswith("Formula:")
    True
    """
    text = _ROLE.sub(lambda m: f"`{m[2].rpartition('.')[2] if m[1] else m[2]}`", text)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    blocks = re.split(r"\n{2,}(?=\S)", text)
    return "\n\n".join(f"```pycon\n{b.rstrip()}\n```" if b.startswith(">>> ") else b for b in blocks)


class Markdown(griffe.Extension):
    """Rewrites every docstring by :func:`as_markdown` before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
