"""Methods that go through the library: several frozen encoders, adapted or fused, with streams withheld in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Bernoulli, predict
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import ConcatLoRA, Wander
from bayes_adapters.training import fit
from examples.body_signals.data import MODALITIES, SECONDS, Signals
from examples.body_signals.methods import Fitted, check_present
from examples.body_signals.task import Task


@dataclass(frozen=True)
class AdapterSettings:
    """What is the same for every adapted method.

    Args:
        epochs: passes over the training windows; the one with the lowest validation NLL is kept.
        batch_size: windows a step.
        lr: peak learning rate of AdamW, after a warm-up of 30 steps, then linear decay.
        withheld: probability with which each stream of a training window is withheld (one always stays).
        samples: posterior draws at test.
    """

    epochs: int = 8
    batch_size: int = 64
    lr: float = 2e-3
    withheld: float = 0.2
    samples: int = 10


@dataclass(frozen=True)
class Method:
    """One adapted method.

    Args:
        build: (frozen encoders, number of training windows) → model and guide.
        kl_weight: of the ELBO; 0 is maximum likelihood.
        random: whether draws differ.
    """

    build: Callable[[nn.ModuleDict, int], tuple[AdapterModel, AdapterGuide]]
    kl_weight: float = 0.0
    random: bool = False


def _concat(encoders: nn.ModuleDict, _count: int) -> tuple[AdapterModel, AdapterGuide]:
    # rank 2 in q and v of 2 layers of 5 encoders: 5,120 numbers beside the head, the fewest that all methods have
    model = ConcatLoRA(encoders, Bernoulli(), targets=["query", "value"], rank=2, alpha=4.0)
    return model, Delta(model)


def _wander(cp: str, guide: Callable[[AdapterModel], AdapterGuide]) -> Callable[..., tuple[AdapterModel, AdapterGuide]]:
    def build(encoders: nn.ModuleDict, count: int) -> tuple[AdapterModel, AdapterGuide]:
        lengths = dict.fromkeys(encoders, SECONDS)
        model = Wander(encoders, Bernoulli(), num_data=count, lengths=lengths, fusion_rank=8, terms=2, cp=cp)
        return model, guide(model)

    return build


ADAPTED: dict[str, Method] = {
    "concat-lora": Method(_concat),
    "wander": Method(_wander("product_of_sums", Delta)),
    "wander-sum-of-products": Method(_wander("sum_of_products", Delta)),
    "bayesian-wander": Method(
        _wander("sum_of_products", lambda model: MeanField(model, init_scale=0.02)), kl_weight=0.1, random=True
    ),
}
"""Name → method. The KL weight of Bayesian Wander is tempered: at 1 its 30,000 factors pay more than 2,300 windows."""


class WindowBatches:
    """Batches of windows, of which each epoch withholds others.

    Args:
        windows: standardised.
        settings: batch size, and how often a stream is withheld.
        seed: of the order and of what is withheld; None keeps the order and withholds nothing.
    """

    def __init__(self, windows: Signals, settings: AdapterSettings, seed: int | None) -> None:
        self.windows, self.settings, self.seed, self.epoch = windows, settings, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and what is withheld."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.windows.labels) // self.settings.batch_size)

    def identity(self) -> dict[str, Any]:
        """What decides the batches, for checkpoints."""
        return {"windows": len(self.windows.labels), "seed": self.seed} | vars(self.settings)

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.windows.labels)
        order, present = torch.arange(count), torch.ones(count, len(MODALITIES), dtype=torch.bool)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
            order = torch.randperm(count, generator=generator)
            present = torch.rand(count, len(MODALITIES), generator=generator) >= self.settings.withheld
            present[~present.any(1)] = True
        for rows in order.split(self.settings.batch_size):
            yield batch_of(self.windows, rows, present[rows])


def batch_of(windows: Signals, rows: Tensor, present: Tensor) -> Batch:
    """Return the windows ``rows`` with the streams that are ``present``, shape (B, number of modalities), bool."""
    inputs: dict[str, Tensor] = {}
    for column, name in enumerate(MODALITIES):
        if bool(present[:, column].any()):
            inputs |= {f"{name}.signal": windows.values[name][rows], f"{name}.present": present[:, column]}
    return Batch(inputs, windows.labels[rows].float(), index=rows)


@dataclass(frozen=True)
class Adapted:
    """A trained method; withheld streams are missing modalities of the model.

    Args:
        model, guide: trained.
        task: what it is measured on.
        samples: posterior draws.
    """

    model: AdapterModel
    guide: AdapterGuide
    task: Task
    samples: int

    def draws(self, split: str, present: Sequence[str]) -> Float[Tensor, "S N"]:
        names, windows = check_present(present), self.task.signals[split]
        wanted = torch.tensor([name in names for name in MODALITIES])
        rows = torch.arange(len(windows.labels)).split(256)
        batches = [batch_of(windows, part, wanted.expand(len(part), -1)) for part in rows]
        samples = predict(self.model, self.guide, batches, num_samples=self.samples, return_samples=True).samples
        assert samples is not None  # asked for
        return samples.double()


def train(name: str, task: Task, seed: int, settings: AdapterSettings | None = None) -> Fitted:
    """Train one of :data:`ADAPTED` on the training people; keep the epoch that the validation people prefer.

    Raises:
        ConfigError: the method does not exist.
    """
    if name not in ADAPTED:
        raise unknown_name("method", name, ADAPTED)
    settings, method = settings or AdapterSettings(), ADAPTED[name]
    torch.manual_seed(seed)
    encoders = nn.ModuleDict({modality: copy.deepcopy(task.encoders[modality]) for modality in MODALITIES})
    model, guide = method.build(encoders, len(task.signals["train"].labels))
    data = WindowBatches(task.signals["train"], settings, seed)
    steps = settings.epochs * len(data)
    fit(
        model,
        guide,
        data,
        epochs=settings.epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=settings.lr),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 30) * max(0.05, 1 - step / steps)
        ),
        kl_weight=method.kl_weight,
        clip_norm=1.0,
        validation=list(WindowBatches(task.signals["validation"], settings, None)),
        num_samples=4 if method.random else 1,
        seed=seed,
        progress=False,
    )
    return Adapted(model, guide, task, settings.samples if method.random else 1)
