"""What a training step keeps for its backward: bytes of saved tensors, by what runs again in backward.

Counted by ``torch.autograd.graph.saved_tensors_hooks``, each storage once, over a random Llama; parameters are left
out. That is a number of the method, not of a machine: it repeats to the byte.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from bayes_adapters import ELBO, Batch, Categorical, Frames
from bayes_adapters.systems import build
from examples.benchmarks.workload import checkpoint_blocks

SYSTEMS = ("lora", "blob", "scalabl", "bayeslora-2026", "mc-dropout", "c-lora", "caliber-x")
LAYERS, WIDTH, BATCH, TOKENS, FRAMES = 8, 64, 2, 128, 50


def backbone() -> LlamaModel:
    """Return a decoder of 8 layers without dropout."""
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}
    return LlamaModel(LlamaConfig(**sizes))


def batch() -> Batch:
    """Return texts with audio frames."""
    frames = Frames(torch.randn(BATCH, FRAMES, WIDTH), torch.ones(BATCH, FRAMES, dtype=torch.bool))
    return Batch({"input_ids": torch.randint(100, (BATCH, TOKENS))}, torch.tensor([0, 1]), {"audio": frames})


def saved_bytes(elbo: ELBO, data: Batch) -> int:
    """Return the bytes that autograd keeps of one evaluation of the loss; parameters are not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*elbo.parameters(), *elbo.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = elbo(data)  # kept alive while it is counted, so that no storage is used again
    assert loss.requires_grad
    return sum(kept.values())


def measure(name: str, *, checkpointed: bool, recompute: bool = False, **options: Any) -> float:
    """Return the MiB that one evaluation of a system's loss keeps; ``checkpointed`` is of blocks."""
    torch.manual_seed(0)
    more = {"context_dim": WIDTH} if "caliber" in name else {}
    decoder: Any = backbone()
    options |= {"targets": ["q_proj", "v_proj"], **more}
    model, guide = build(name, decoder, Categorical(2), num_data=100, **options)
    checkpoint_blocks(decoder, on=checkpointed)
    return saved_bytes(ELBO(model, guide, recompute=recompute).train(), batch()) / 2**20


def main() -> None:
    """Print one line a system, as a table in Markdown."""
    print("| system | rank | MiB | sites recomputed | blocks checkpointed | both |\n|---|---|---|---|---|---|")
    for name, rank in [(name, 8) for name in SYSTEMS] + [("c-lora", 16), ("caliber-x", 16)]:
        ways = [(blocks, sites) for blocks in (False, True) for sites in (False, True)]
        found = [measure(name, checkpointed=blocks, recompute=sites, rank=rank) for blocks, sites in ways]
        print(f"| {name} | {rank} | {' | '.join(f'{mebibytes:.1f}' for mebibytes in found)} |")


if __name__ == "__main__":
    main()
