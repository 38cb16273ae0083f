"""Densities on pairs, read back from a saved adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files import WEIGHTS, kinds, read_pair_densities, require_same
from bayes_adapters.reliability.pair_density import PairDensity


def load_pair_densities(directory: str | Path) -> dict[str, PairDensity]:
    """Return what was given as ``pair_densities`` to :func:`bayes_adapters.save`, on the CPU; empty where none was.

    Returns:
        Modality → density, whose agreements equal the saved ones' to the bit.

    Raises:
        AdapterFileError: the folder holds no readable adapter, or the tensors of a density are not those that its
            configuration asks for. No memory was taken for these.

    ::

        density = PairDensity.fit(inputs, contexts, held_out_inputs, held_out_contexts)
        save(folder, model, guide, pair_densities={"audio": density})
        density = load_pair_densities(folder)["audio"]
        inputs, contexts, _ = frozen_pairs(model, batch, "audio")
        density.p_value(inputs, contexts)
    """
    return {name: _built(Path(directory), *parts) for name, parts in read_pair_densities(directory).items()}


def _built(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> PairDensity:
    try:
        with torch.device("meta"):  # a size may be anybody's: nothing is allocated before it is compared
            density = PairDensity(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AdapterFileError(
            f"A density on pairs of the adapter in {str(folder)!r} cannot be built: {error} Was it saved by a newer "
            "bayes-adapters? Update this one."
        ) from error
    require_same(folder / WEIGHTS, "needed by the density on pairs", kinds(density.state_dict()), kinds(tensors))
    density.load_state_dict(tensors, assign=True)
    return density
