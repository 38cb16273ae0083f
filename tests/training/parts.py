"""Small runs, and what tests compare of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bayes_adapters import AdapterGuide, AdapterModel, Batch
from bayes_adapters.guides import Contextual
from bayes_adapters.training import FitResult, batches, fit
from bayes_adapters.training._data import Batches
from tests.helpers import core_model, token_batch

WHOLE = token_batch(22, seed=3)
"""Twenty-two examples."""

SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "accumulate": 2,
    "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.02, total_steps=9),
    "validation": [WHOLE[:6]],
    "kl_weight": 0.1,
}


def pair(guide: Any = Contextual, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    """A model (with dropout on the adapters) and a guide, the same weights every time."""
    model = core_model(**{"rank": 2, "dropout": 0.2} | options)
    torch.manual_seed(5)
    return model, guide(model)


def data() -> Any:
    """Six batches: five of four examples and one of two, shuffled."""
    return batches(WHOLE, 4, seed=7)


def weights(model: AdapterModel, guide: AdapterGuide) -> dict[str, Tensor]:
    """A copy of everything that could be trained."""
    named = {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"guide.{k}": v for k, v in guide.state_dict().items()
    }
    return {k: v.detach().clone() for k, v in named.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are bitwise equal."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def history(result: FitResult) -> list[dict[str, float]]:
    """The history without what the clock decides."""
    return [{k: v for k, v in log.items() if k != "examples_per_second"} for log in result.history]


def run(model: AdapterModel, guide: AdapterGuide, source: Any = None, **options: Any) -> FitResult:
    """``fit`` with quick settings."""
    settings: dict[str, Any] = {"epochs": 2, "progress": False, "optimizer": lambda p: torch.optim.Adam(p, lr=1e-2)}
    if "max_steps" in options:
        settings["epochs"] = None
    return fit(model, guide, data() if source is None else source, **(settings | options))


class Stopping(Batches):
    """``data()`` that raise ``error`` before giving batch ``after`` of epoch ``epoch``, once."""

    def __init__(self, epoch: int, after: int, error: BaseException) -> None:
        super().__init__(WHOLE, 4, None, shuffle=True, seed=7, drop_last=False)
        self.at, self.error, self.raised = (epoch, after), error, False

    def __iter__(self) -> Any:
        for i, batch in enumerate(super().__iter__()):
            if (self.epoch, i) == self.at and not self.raised:
                self.raised = True
                raise self.error
            yield batch


def file_in(folder: Path) -> Path:
    """The checkpoint's file."""
    return folder / "checkpoint.safetensors"


def broken(batch: Batch) -> Batch:
    """The same batch with a target that makes a Gaussian likelihood overflow."""
    assert batch.targets is not None
    return Batch(batch.inputs, torch.full_like(batch.targets, 1e30), batch.context, batch.index)


class Items(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return WHOLE.size

    def __getitem__(self, i: int) -> tuple[Batch, float]:
        return WHOLE[torch.tensor([i])], float(torch.rand(()))


def join(items: list[tuple[Batch, float]]) -> Batch:
    """Augments: the noise a data set draws must be continued as well."""
    rows = WHOLE[torch.cat([b.ids for b, _ in items])]
    frames = rows.context["audio"]
    noisy = type(frames)(frames.values * torch.tensor([n for _, n in items])[:, None, None], frames.mask)
    return Batch(rows.inputs, rows.targets, {"audio": noisy}, rows.index)
