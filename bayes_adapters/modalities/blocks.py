"""Which modules make up an encoder: its blocks, their six linear layers, and the places where a block can be tapped.

The roles are found by looking at one block, not at class names: query, key and value by their names, everything else by
watching which module computes what in one pass of a few random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from torch import nn

from bayes_adapters.adapters.installation import require_unadapted
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.targets import dimensions
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.errors import choice
from bayes_adapters.modalities._block_checks import (
    no_blocks,
    no_list,
    require_encoder_names,
    require_modules,
    require_numbered,
    require_one_kind,
    require_parts,
    require_some,
)
from bayes_adapters.modalities._block_trial import NAMES, block_roles, block_width, role_paths
from bayes_adapters.modalities.lockstep import Side, Tap


class Stage(StrEnum):
    """A place in a block that a tap can read, in the order of execution. Each holds a tensor (B, T, d).

    Blocks that attend within windows hold (B · windows, T, d) at CONTEXT, an example's windows in a row.
    """

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
        blocks: one :class:`Block` each, in the order of execution; they may differ in width.
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

        An encoder with a list of blocks per stage takes one call a stage, joined: ``Blocks((*first, *second))``.

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
        require_numbered(templates)
        known = dict(module.named_modules())
        blocks: list[Block] = []
        while not blocks or block.path.replace("{i}", str(len(blocks))) in known:
            paths = {name: template.replace("{i}", str(len(blocks))) for name, template in templates.items()}
            require_modules(module, paths, templates, known)
            blocks.append(Block(**paths))
        return cls(tuple(blocks))


def describe_blocks(module: nn.Module) -> Blocks:
    """Find the blocks of an encoder, their linear layers and their taps by structure.

    Blocks are the members of the list of modules that each hold one query, one key and one value layer. The first of
    them is run once, in eval mode and without gradients, on two examples of two random tokens (of one window, where it
    attends within windows): the linear layers that run besides query, key and value on these examples are, in this
    order, the output projection, fc1 and fc2. Where query sees the block's input itself, its tokens in whatever order,
    the encoder is post-norm; where it sees the output of a norm, pre-norm.

    There may be one list per stage: then each stage but the last ends in a linear layer that makes the next one's
    width, all widths differ, and the blocks are those of the stages one after another.

    Known to work: BERT, RoBERTa, ELECTRA, MPNet, DistilBERT, BART's encoder, ViT, DeiT, DINOv2, CLIP and SigLIP
    vision, AST, Whisper's encoder, wav2vec 2.0 and HuBERT (both kinds of norm), Swin and Swin V2. Not possible: WavLM
    (its attention reads its weights past the layers), fused query-key-value layers (GPT-2, ModernBERT), gated
    feed-forward (DINOv2 giant), stages that are joined by convolutions (SegFormer, PVT). ALBERT has one block that is
    used many times: it cannot be tapped.

    Args:
        module: the encoder without adapters; of an encoder-decoder pass the encoder. Nothing in it is changed.

    Returns:
        The blocks, with paths as in ``module.named_modules()``. They stay valid when adapters are put in.

    Raises:
        ConfigError: no such list, or several that are no stages; a block's structure is another one; the module has
            adapters.
    """
    require_unadapted(module)
    lists = _block_lists(module)
    return Blocks(tuple(block for path, layers in lists.items() for block in _describe_list(module, path, layers)))


def _describe_list(module: nn.Module, path: str, layers: nn.ModuleList) -> Blocks:
    require_one_kind(path, layers)
    prefix = f"{path}." if path else ""
    roles = {role: f"{prefix}{{i}}.{below}" for role, below in block_roles(f"{prefix}0", layers[0]).items()}
    return Blocks.from_templates(module, Block(f"{prefix}{{i}}", **roles))


def stage_width(module: nn.Module, block: Block, stage: Stage | str) -> int:
    """Return the width d of the stream (B, T, d) that a block of ``module`` holds at ``stage``, adapted or not.

    It is what the linear layer next to the tap reads or makes; blocks of one encoder may differ in it (Swin). Where a
    block given by hand names something else there, it is the width of what the encoder returns.
    """
    readers = {Stage.INPUT: block.query, Stage.CONTEXT: block.output, Stage.FEED_FORWARD: block.fc1}
    stage = choice(Stage, "stage", stage)
    layer = module.get_submodule(readers.get(stage, block.fc2))
    size = dimensions(layer.base_layer if isinstance(layer, AdaptedLinear) else layer)
    if size is None:
        return hidden_width(module)
    return size[1] if stage is Stage.OUTPUT else size[0]


def blocks_of(
    encoders: nn.ModuleDict, given: Mapping[str, Blocks | Sequence[Mapping[str, str]]] | None = None
) -> dict[str, Blocks]:
    """Return the blocks of every encoder: those ``given``, as :class:`Blocks` or as JSON, else as they are described.

    Raises:
        ConfigError: ``given`` names no encoder, an encoder without blocks, or a module that its encoder does not have;
            or an encoder's blocks are neither given nor known.
    """
    require_encoder_names(given or {}, encoders)
    read = {name: _read(name, own, encoders[name]) for name, own in (given or {}).items()}
    require_some({name: len(own) for name, own in read.items()})
    return {name: read[name] if name in read else describe_blocks(encoder) for name, encoder in encoders.items()}


def _read(name: str, given: Blocks | Sequence[Mapping[str, str]], encoder: nn.Module) -> Blocks:
    try:
        blocks = given if isinstance(given, Blocks) else Blocks(tuple(Block(**block) for block in given))
    except TypeError as error:
        raise no_blocks(name, given, Block.__match_args__) from error
    require_parts(name, map(asdict, blocks), encoder)
    return blocks


def _block_lists(module: nn.Module) -> dict[str, nn.ModuleList]:
    """Path → list of blocks: the only one, or one per stage in the order of the stages."""
    found: dict[str, nn.ModuleList] = {}
    for path, layers in module.named_modules():
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            counts = {len(paths) for layer in layers for paths in role_paths(layer).values()}
            if counts == {1}:
                found[path] = layers
    innermost = {p: m for p, m in found.items() if not any(q.startswith(f"{p}." if p else "") for q in found if q != p)}
    if len(innermost) == 1 or (innermost and _are_stages(module, innermost)):
        return innermost
    raise no_list(module, innermost, (name for allowed in NAMES.values() for name in allowed))


def _are_stages(module: nn.Module, lists: Mapping[str, nn.ModuleList]) -> bool:
    """Whether the lists lie one in each member of one list of stages, of which each makes the next one's width."""
    parts = [path.split(".") for path in lists]
    at = [i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1]
    if len({len(p) for p in parts}) > 1 or len(at) != 1:
        return False
    stages = module.get_submodule(".".join(parts[0][: at[0]]))
    if not isinstance(stages, nn.ModuleList) or [p[at[0]] for p in parts] != [str(i) for i in range(len(stages))]:
        return False
    widths = [block_width(layers[0]) for layers in lists.values()]
    made = [
        {size[1] for path, m in stage.named_modules() if (size := dimensions(m)) and not path.startswith(f"{below}.")}
        for stage, below in zip(stages, (".".join(p[at[0] + 1 :]) for p in parts), strict=True)
    ]
    return len(set(widths)) == len(widths) and all(w in own for own, w in zip(made, widths[1:], strict=False))
