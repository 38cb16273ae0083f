"""Which modules make up an encoder: its blocks, their six linear layers, and the places where a block can be tapped.

The roles are found by looking at one block, not at class names: query, key and value by their names, everything else by
watching which module computes what in one pass of two random tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bayes_adapters.errors import ConfigError, choice, near_matches
from bayes_adapters.layer import require_unadapted
from bayes_adapters.lockstep import Side, Tap
from bayes_adapters.targets import dimensions

_NAMES = {
    "query": ("query", "query_proj", "q_proj", "q_lin", "q"),
    "key": ("key", "key_proj", "k_proj", "k_lin", "k"),
    "value": ("value", "value_proj", "v_proj", "v_lin", "v"),
}
_BY_HAND = "Name the parts yourself: Blocks.from_templates(module, Block(path='layers.{i}', ...))."


class Stage(StrEnum):
    """A place in a block that a tap can read, in the order of execution. Each holds a tensor (B, T, d)."""

    INPUT = "input"
    """The block's input: the residual stream, normalised already in post-norm encoders."""
    CONTEXT = "context"
    """The attention's context, heads concatenated, before the output projection."""
    FEED_FORWARD = "feed_forward"
    """The residual stream after attention, before the feed-forward part (in pre-norm encoders: before its norm). Read
    it only: a replacement changes what the feed-forward part sees, not the residual connection around it."""
    OUTPUT = "output"
    """The block's output."""


@dataclass(frozen=True)
class Block:
    """One transformer block of an encoder; every field is a module path.

    Args:
        path: the block.
        query, key, value, output: the attention's linear layers.
        fc1, fc2: the linear layers of the feed-forward part.
        residual: the module whose **input** is the residual stream before the feed-forward part: ``fc1`` in post-norm
            encoders, the second norm in pre-norm ones.
    """

    path: str
    query: str
    key: str
    value: str
    output: str
    fc1: str
    fc2: str
    residual: str

    @property
    def linears(self) -> tuple[str, str, str, str, str, str]:
        """Paths of query, key, value, output, fc1 and fc2."""
        return self.query, self.key, self.value, self.output, self.fc1, self.fc2

    def tap(self, stage: Stage | str, step: int) -> Tap:
        """Return the tap that reads this block at ``stage`` in exchange number ``step``."""
        places = {
            Stage.INPUT: (self.path, Side.INPUT),
            Stage.CONTEXT: (self.output, Side.INPUT),
            Stage.FEED_FORWARD: (self.residual, Side.INPUT),
            Stage.OUTPUT: (self.path, Side.OUTPUT),
        }
        return Tap(step, *places[choice(Stage, "stage", stage)])


@dataclass(frozen=True)
class Blocks:
    """The blocks of an encoder in order; ``len``, indices and iteration as of a tuple.

    Args:
        blocks: one :class:`Block` each, in the order of execution.
    """

    blocks: tuple[Block, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the blocks."""
        return tuple(block.path for block in self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        return self.blocks[index]

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    @classmethod
    def from_templates(cls, module: nn.Module, block: Block) -> Blocks:
        """Name the blocks of an encoder by hand.

        Args:
            module: the encoder; nothing in it is changed.
            block: path templates with ``{i}`` for the block's number, as in
                ``query="encoder.layer.{i}.attention.self.query"``.

        Returns:
            The blocks for i = 0, 1, … as far as the template of ``path`` finds a module.

        Raises:
            ConfigError: a template lacks ``{i}`` or names a module that does not exist (near matches are listed).

        >>> net = nn.ModuleList([nn.ModuleDict({n: nn.Linear(2, 2) for n in ("q", "k", "v", "o", "up", "down")})])
        >>> template = Block("{i}", "{i}.q", "{i}.k", "{i}.v", "{i}.o", "{i}.up", "{i}.down", residual="{i}.up")
        >>> Blocks.from_templates(net, template)[0].linears
        ('0.q', '0.k', '0.v', '0.o', '0.up', '0.down')
        """
        templates = asdict(block)
        for name, template in templates.items():
            if "{i}" not in template:
                raise ConfigError(
                    f"The template {name}={template!r} has no {{i}}, which stands for the block's number."
                )
        known = dict(module.named_modules())
        blocks: list[Block] = []
        while not blocks or block.path.replace("{i}", str(len(blocks))) in known:
            paths = {name: template.replace("{i}", str(len(blocks))) for name, template in templates.items()}
            for name, path in paths.items():
                if path not in known:
                    raise ConfigError(
                        f"{type(module).__name__} has no module {path!r} for the template {name}={templates[name]!r}."
                        f"{near_matches(path, known)}"
                    )
            blocks.append(Block(**paths))
        return cls(tuple(blocks))


def describe_blocks(module: nn.Module) -> Blocks:
    """Find the blocks of an encoder, their linear layers and their taps by structure.

    Blocks are the members of the list of modules that each hold one query, one key and one value layer. The first of
    them is run once, in eval mode and without gradients, on two random tokens: the linear layers that run beside query,
    key and value are, in this order, the output projection, fc1 and fc2. Where query sees the block's input itself the
    encoder is post-norm; where it sees the output of a norm, pre-norm.

    Known to work: BERT, RoBERTa, ELECTRA, MPNet, DistilBERT, BART's encoder, ViT, DeiT, DINOv2, CLIP and SigLIP
    vision, AST, Whisper's encoder, wav2vec 2.0 and HuBERT (both kinds of norm). Not possible: WavLM (its attention
    reads its weights past the layers), fused query-key-value layers (GPT-2, ModernBERT), gated feed-forward (DINOv2
    giant), one list of blocks per stage (Swin). ALBERT has one block that is used many times: it cannot be tapped.

    Args:
        module: the encoder without adapters; of an encoder-decoder pass the encoder. Nothing in it is changed.

    Returns:
        The blocks, with paths as in ``module.named_modules()``. They stay valid when adapters are put in.

    Raises:
        ConfigError: no such list, or several; a block's structure is another one; the module has adapters.
    """
    require_unadapted(module)
    path, layers = _block_list(module)
    if len(kinds := {type(layer).__name__ for layer in layers}) > 1:
        raise ConfigError(f"The blocks in {path!r} are of different kinds, {sorted(kinds)}. {_BY_HAND}")
    prefix = f"{path}." if path else ""
    roles = {role: f"{prefix}{{i}}.{below}" for role, below in _roles(f"{prefix}0", layers[0]).items()}
    return Blocks.from_templates(module, Block(f"{prefix}{{i}}", **roles))


def blocks_of(
    encoders: nn.ModuleDict, given: Mapping[str, Blocks | Sequence[Mapping[str, str]]] | None = None
) -> dict[str, Blocks]:
    """Return the blocks of every encoder: those ``given``, as :class:`Blocks` or as JSON, else as they are described.

    Raises:
        ConfigError: ``given`` names no encoder, an encoder without blocks, or a module that its encoder does not have;
            or an encoder's blocks are neither given nor known.
    """
    unknown = [name for name in given or {} if name not in encoders]
    if unknown:
        raise ConfigError(f"blocks names {unknown[0]!r}; the encoders are {sorted(encoders)}.")
    read = {name: _read(name, own, encoders[name]) for name, own in (given or {}).items()}
    empty = [name for name, own in read.items() if not len(own)]
    if empty:
        raise ConfigError(f"blocks gives no block for {empty[0]!r}. Leave it out, and they are found by structure.")
    return {name: read[name] if name in read else describe_blocks(encoder) for name, encoder in encoders.items()}


def _read(name: str, given: Blocks | Sequence[Mapping[str, str]], encoder: nn.Module) -> Blocks:
    try:
        blocks = given if isinstance(given, Blocks) else Blocks(tuple(Block(**block) for block in given))
    except TypeError as error:
        raise ConfigError(
            f"blocks[{name!r}] must be Blocks, or a list with a dictionary a block, of "
            f"{', '.join(Block.__match_args__)}; got {str(given)[:200]}."
        ) from error
    known = dict(encoder.named_modules())
    for number, block in enumerate(blocks):
        for role, path in asdict(block).items():
            if path not in known:
                raise ConfigError(
                    f"blocks[{name!r}][{number}] has {role}={path!r}, which is no module of this "
                    f"{type(encoder).__name__}.{near_matches(str(path), known)}"
                )
    return blocks


def _role_paths(block: nn.Module) -> dict[str, list[str]]:
    """Role (query, key, value) → paths of the linear layers in ``block`` that bear its name."""
    linear = [path for path, m in block.named_modules() if dimensions(m) is not None]
    return {role: [p for p in linear if p.rsplit(".", 1)[-1] in names] for role, names in _NAMES.items()}


def _block_list(module: nn.Module) -> tuple[str, nn.ModuleList]:
    found: dict[str, nn.ModuleList] = {}
    for path, layers in module.named_modules():
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            counts = {len(paths) for layer in layers for paths in _role_paths(layer).values()}
            if counts == {1}:
                found[path] = layers
    innermost = {p: m for p, m in found.items() if not any(q.startswith(f"{p}." if p else "") for q in found if q != p)}
    if len(innermost) == 1:
        return next(iter(innermost.items()))
    if innermost:
        raise ConfigError(
            f"{type(module).__name__} has several lists of blocks, {sorted(innermost)}: pass one encoder, for "
            f"example model.get_encoder(). An encoder with a list per stage (Swin) has no single depth. {_BY_HAND}"
        )
    linear = sorted({p.rsplit(".", 1)[-1] for p, m in module.named_modules() if dimensions(m) is not None})
    names = ", ".join(name for allowed in _NAMES.values() for name in allowed)
    raise ConfigError(
        f"{type(module).__name__} has no list of blocks that each hold one query, one key and one value layer (allowed "
        f"names: {names}).{near_matches('query', linear)} Its linear layers end in: {', '.join(linear) or 'none'}. "
        f"Cross-attention and fused query-key-value layers are not covered. {_BY_HAND}"
    )


@dataclass
class _Pass:
    """What one pass through a block showed; tensors are kept, so that identity means sameness."""

    order: list[str]
    inputs: dict[str, Tensor]
    outputs: list[tuple[str, Tensor]]
    source: Tensor

    def origin(self, tensor: Tensor | None) -> str | None:
        """The innermost module that returned this very tensor."""
        return next((path for path, output in self.outputs if output is tensor), None)


def _roles(path: str, block: nn.Module) -> dict[str, str]:
    """Return role → path below ``block`` for the fields of :class:`Block` but ``path``."""
    qkv = {role: paths[0] for role, paths in _role_paths(block).items()}
    linear = [p for p, m in block.named_modules() if dimensions(m) is not None]
    size = dimensions(block.get_submodule(qkv["query"]))
    width = 0 if size is None else size[0]
    seen = _watch(path, block, width)
    silent = [p for p in qkv.values() if p not in seen.order]
    if silent:
        raise ConfigError(
            f"{type(block).__name__} at {path!r} does not call its layers {silent}: its attention reads their weights "
            "itself, so neither adapters nor taps can be put there. Choose another encoder, or build Blocks with other "
            "layers in their place."
        )
    first = min(seen.order.index(p) for p in qkv.values())
    rest = [p for p in seen.order[first:] if p in linear and p not in qkv.values()]
    if len(rest) != 3:
        raise ConfigError(
            f"{type(block).__name__} at {path!r} calls {len(rest)} linear layers besides query, key and value, {rest}; "
            f"output projection, fc1 and fc2 are three. {_BY_HAND}"
        )
    output, fc1, fc2 = rest
    entered, norm = seen.inputs.get(qkv["query"]), seen.origin(seen.inputs.get(fc1))
    if entered is seen.source:
        residual = fc1
    elif norm is not None and seen.origin(entered) not in (None, norm):
        residual = norm
    else:
        raise ConfigError(
            f"{type(block).__name__} at {path!r} is neither post-norm (query sees the block's input) nor pre-norm "
            f"(query and fc1 each see the result of a norm), so there is no telling where the residual stream is. "
            f"{_BY_HAND}"
        )
    return {**qkv, "output": output, "fc1": fc1, "fc2": fc2, "residual": residual}


def _watch(path: str, block: nn.Module, width: int) -> _Pass:
    parameter = next(block.parameters())
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, 2, width, generator=generator).to(parameter.device, parameter.dtype)
    seen = _Pass([], {}, [], source)
    handles: list[RemovableHandle] = []
    for below, part in block.named_modules():
        if below:
            handles.append(part.register_forward_pre_hook(_note_input(seen, below)))
            handles.append(part.register_forward_hook(_note_output(seen, below)))
    parameters = list(inspect.signature(block.forward).parameters.values())
    rest = {p.name: None for p in parameters[1:] if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    try:
        with torch.no_grad(), _evaluating(block):
            block(source, **rest)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise ConfigError(
            f"{type(block).__name__} at {path!r} cannot be run alone on a tensor of shape (1, 2, {width}): {error}. "
            f"{_BY_HAND}"
        ) from error
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


@contextmanager
def _evaluating(block: nn.Module) -> Iterator[None]:
    before = [(m, m.training) for m in block.modules()]
    block.eval()
    try:
        yield
    finally:
        for m, training in before:
            m.training = training
