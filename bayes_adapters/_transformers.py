"""transformers' classes without importing transformers: seconds, which the command line need not wait for."""

from __future__ import annotations

import sys

from torch import nn


def made_by_transformers(module: nn.Module, place: str, name: str) -> bool:
    """Whether ``module`` is an instance of the class ``name`` of ``transformers.<place>``.

    There are none in a process that has not imported that place yet.
    """
    found = sys.modules.get(f"transformers.{place}")
    return found is not None and isinstance(module, getattr(found, name))
