"""What tests read or set behind public names, in one place."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from bayes_adapters import registry


def hooks_of(*modules: nn.Module) -> int:
    """The number of forward hooks that ``modules`` and their submodules carry."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for root in modules for m in root.modules())


def only_registered(patch: pytest.MonkeyPatch, *classes: Any) -> None:
    """Let ``classes`` be all that programs have registered, until ``patch`` is undone."""
    patch.setattr(registry, "_registered", {kind: {} for kind in registry.Kind})
    for cls in classes:
        registry.register(cls)
