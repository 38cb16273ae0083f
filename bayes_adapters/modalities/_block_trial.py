"""Which parts of one transformer block do what: found by running it on a few random tokens and watching."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.backbones.windows import GRID, window_side
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.modalities._block_checks import no_residual, no_trial, require_calls, require_three

NAMES = {
    "query": ("query", "query_proj", "q_proj", "q_lin", "q"),
    "key": ("key", "key_proj", "k_proj", "k_lin", "k"),
    "value": ("value", "value_proj", "v_proj", "v_lin", "v"),
}


def role_paths(block: nn.Module) -> dict[str, list[str]]:
    """Role (query, key, value) → paths of the linear layers in ``block`` that bear its name."""
    linear = [path for path, m in block.named_modules() if dimensions(m) is not None]
    return {role: [p for p in linear if p.rsplit(".", 1)[-1] in names] for role, names in NAMES.items()}


def block_width(block: nn.Module) -> int:
    """The width of a block's input, which is that of its query layer."""
    size = dimensions(block.get_submodule(role_paths(block)["query"][0]))
    return 0 if size is None else size[0]


def block_roles(path: str, block: nn.Module) -> dict[str, str]:
    """Return role → path below ``block``, the fields of ``blocks.Block`` but ``path``."""
    qkv = {role: paths[0] for role, paths in role_paths(block).items()}
    linear = [p for p, m in block.named_modules() if dimensions(m) is not None]
    seen = _watch(path, block)
    silent = [p for p in qkv.values() if p not in seen.order]
    require_calls(path, block, silent)
    first = min(seen.order.index(p) for p in qkv.values())
    rest = [p for p in seen.order[first:] if p in linear and p not in qkv.values() and seen.sees_examples(p)]
    require_three(path, block, rest)
    output, fc1, fc2 = rest
    entered, norm = seen.arrived(qkv["query"]), seen.origin(seen.inputs.get(fc1))
    if entered is seen.source:
        residual = fc1
    elif norm is not None and seen.origin(entered) not in (None, norm):
        residual = norm
    else:
        raise no_residual(path, block)
    return {**qkv, "output": output, "fc1": fc1, "fc2": fc2, "residual": residual}


class _Rearrangements(TorchFunctionMode):
    """Notes which tensors are other tensors' values in another order or shape."""

    names = frozenset({"view", "reshape", "flatten", "transpose", "permute", "contiguous", "roll", "pad"})

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self.names and args and isinstance(args[0], Tensor):
            self.made.append((result, args[0]))
        return result

    def before(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor that ``tensor`` was one step of rearrangement ago; None if it is no other's rearrangement."""
        return next((source for result, source in self.made if result is tensor and source is not tensor), None)


@dataclass
class _Pass:
    """What one pass through a block showed; tensors are kept, so that identity means sameness."""

    order: list[str]
    inputs: dict[str, Tensor]
    outputs: list[tuple[str, Tensor]]
    source: Tensor
    moved: _Rearrangements

    def sees_examples(self, path: str) -> bool:
        """Whether a layer's input has an axis of examples; a table of relative positions (Swin V2) has none."""
        return path not in self.inputs or self.inputs[path].shape[0] % len(self.source) == 0

    def arrived(self, path: str) -> Tensor | None:
        """What a module saw, in the order in which the block got it or another module made it."""
        tensor = self.inputs.get(path)
        while tensor is not None and tensor is not self.source and self.origin(tensor) is None:
            earlier = self.moved.before(tensor)
            if earlier is None:
                break
            tensor = earlier
        return tensor

    def origin(self, tensor: Tensor | None) -> str | None:
        """The innermost module that returned this very tensor."""
        return next((path for path, output in self.outputs if output is tensor), None)


def _watch(path: str, block: nn.Module) -> _Pass:
    parameter, side = next(block.parameters()), window_side(block)
    generator = torch.Generator().manual_seed(0)
    shape = (2, 2 if side is None else side * side, block_width(block))
    source = torch.randn(shape, generator=generator, device="cpu").to(parameter.device, parameter.dtype)
    seen = _Pass([], {}, [], source, _Rearrangements())
    handles: list[RemovableHandle] = []
    for below, part in block.named_modules():
        if below:
            handles.append(part.register_forward_pre_hook(_note_input(seen, below)))
            handles.append(part.register_forward_hook(_note_output(seen, below)))
    parameters = list(inspect.signature(block.forward).parameters.values())
    rest: dict[str, Any] = {
        p.name: None for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    if side is not None:
        rest[GRID] = (side, side)
    try:
        with torch.no_grad(), evaluating(block), seen.moved:
            block(source, **rest)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise no_trial(path, block, shape, error) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _note_input(seen: _Pass, path: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.order.append(path)
        if args and isinstance(args[0], Tensor):
            seen.inputs.setdefault(path, args[0])

    return hook


def _note_output(seen: _Pass, path: str) -> Any:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            seen.outputs.append((path, output))

    return hook
