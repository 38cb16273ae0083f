"""What the library asks Pyro's handler stack; ``modalities._thread_state`` saves and restores it as a whole.

``pyro.infer.SVI`` learns which tensors to train from the ``pyro.param`` statements it records. Emitting them always
would fill the global parameter store on every call; emitting them never would make SVI train nothing, silently. So
they are emitted exactly when a handler that records parameters is active.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pyro
from pyro.poutine import runtime
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn
from torch.distributions import constraints


def parameters_are_captured() -> bool:
    """Whether a handler that records ``pyro.param`` statements (as inside ``SVI.step``) is active."""
    return any(isinstance(handler, TraceMessenger) and handler.param_only for handler in runtime._PYRO_STACK)


def register_if_captured(prefix: str, module: nn.Module) -> None:
    """Emit a parameter statement for every trainable tensor of ``module`` if somebody records parameters.

    With ``pyro.settings.set(module_local_params=True)`` nothing enters the global parameter store, as in Pyro's own
    modules, and several models can be trained side by side.

    Raises:
        RuntimeError: the store holds another object's tensor under the same name (a second model in one process).
    """
    if not parameters_are_captured():
        return
    local = pyro.settings.get("module_local_params")
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        full = f"{prefix}$$${name}"
        if local:
            _emit(full, parameter)
        elif pyro.param(full, parameter) is not parameter:
            raise RuntimeError(
                f"Pyro's parameter store already holds another tensor named '{full}', so SVI would train that one "
                "instead of yours. Call pyro.settings.set(module_local_params=True) before, which keeps parameters out "
                "of the store, or pyro.clear_param_store() before fitting a second model with SVI."
            )


def _emit(name: str, parameter: nn.Parameter) -> None:
    """Show handlers a parameter statement whose value is ``parameter``, without Pyro's global store."""
    value: Any = parameter.view_as(parameter)  # a tensor of its own, as the attribute must not stay on the parameter
    value.unconstrained = weakref.ref(parameter)
    runtime.effectful(lambda *_, **__: value, type="param")(
        name, constraint=constraints.real, event_dim=None, name=name
    )


def is_traced() -> bool:
    """Whether a handler outside the guide records sample statements, as in every one of Pyro's ELBOs."""
    return bool(_outer_traces())


def untrace(names: Sequence[str]) -> None:
    """Take these sites out of what handlers outside the guide have recorded of a run."""
    for handler in _outer_traces():
        for name in names:
            if name in handler.trace:
                handler.trace.remove_node(name)


def _outer_traces() -> list[TraceMessenger]:
    handlers = [handler for handler in runtime._PYRO_STACK if isinstance(handler, TraceMessenger)]
    return [handler for handler in handlers if not isinstance(handler, GuideMessenger)]
