"""Rows of a pass: examples repeated for every sample, and masks as long as what they mark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from bayes_adapters.data.batch import TOKEN_MASK
from bayes_adapters.errors import DataError


def fold(value: Tensor, samples: int) -> Tensor:
    """Repeat the rows of ``value`` (B, …) for every sample: shape (S·B, …) in the order [S, B].

    >>> import torch
    >>> fold(torch.tensor([1, 2]), 3)
    tensor([1, 2, 1, 2, 1, 2])
    """
    return value if samples == 1 else value.repeat(samples, *[1] * (value.dim() - 1))


class Folded(Mapping[str, Tensor]):
    """Inputs whose rows are repeated for every sample, each only when it is asked for: images by 16 are many bytes.

    Args:
        inputs: name → tensor (B, …).
        samples: S.

    >>> import torch
    >>> folded = Folded({"ids": torch.tensor([[1], [2]])}, 2)
    >>> list(folded), folded["ids"].flatten().tolist()
    (['ids'], [1, 2, 1, 2])
    """

    def __init__(self, inputs: Mapping[str, Tensor], samples: int) -> None:
        self.inputs, self.samples = inputs, samples

    def __getitem__(self, name: str) -> Tensor:
        return fold(self.inputs[name], self.samples)

    def __iter__(self) -> Iterator[str]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)


def require_length(
    mask: Tensor, positions: int, where: str, key: str = f"inputs['{TOKEN_MASK}']", otherwise: str = ""
) -> None:
    """Raise :class:`DataError` unless ``mask`` has shape (rows, ``positions``).

    Args:
        mask: what marks real positions.
        positions: how many there are.
        where: what has them, with its verb, for the message: ``"the backbone returns"``.
        key: the entry of the batch that holds a mask of another length than the inputs'.
        otherwise: other remedies, for the message.
    """
    if mask.shape[1:] != (positions,):
        raise DataError(
            f"The mask of tokens has shape {tuple(mask.shape)} where {where} {positions} positions. If the backbone "
            f"changes the length (wav2vec 2.0, Whisper), pass a mask of the new length as {key}{otherwise}. If it pads "
            "tokens to a multiple of some number (Longformer), let the tokenizer: pad_to_multiple_of=."
        )
