"""Methods that go through the library: several frozen encoders, adapted or fused, with streams withheld in training.

Why every row but ``wander-released`` fuses with a residual for each stream. As released, Wander adds its product to the
first r tokens of the first stream that is present, and the head reads nothing else: with all streams there this is as
good as a linear head on all of them, with streams withheld it falls towards chance. Tried on the validation people of
folds 0 and 1, two initialisations each (mean AUC with 0, 1, 2, 3, 4 streams withheld; product of sums)::

    released (residual: first 8 s of BVP)      .784  .692  .570  .541  .527
      EDA first                                .777  .725  .648  .586  .552
      learning rate 6e-3                       .778  .718  .653  .585  .526
      EDA first, learning rate 6e-3            .798  .745  .670  .599  .554
      streams withheld with probability .5     .756  .687  .623  .585  .578
      rank 16                                  .776  .698  .559  .516  .538
      gate starts at .1                        .773  .710  .615  .553  .540
      Z not normalised                         .782  .724  .631  .558  .530
    residual for every stream (chosen)         .780  .739  .700  .655  .590
      sum of products                          .772  .734  .696  .651  .580
      learning rate 6e-3                       .783  .742  .699  .654  .595
      rank 16                                  .780  .735  .695  .650  .586
      16 epochs, learning rate 1e-3            .781  .733  .695  .653  .585
    linear head on the streams' means alone    .774  .743  .706  .659  .588
    average of five probes                     .803  .779  .747  .703  .635

The four runs of a line spread over .70 to .84, folds mostly: only the columns with streams withheld tell the placements
apart. Beside a linear head that reads every stream, the product adds nothing that these people show.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Bernoulli, predict
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.modalities.blocks import Block, Blocks
from bayes_adapters.models import ConcatLoRA, Wander
from bayes_adapters.training import fit
from examples.studies.body_signals.data import MODALITIES, SECONDS, Signals
from examples.studies.body_signals.methods import Fitted, check_present
from examples.studies.body_signals.task import SPLITS, Task
from examples.studies.rates import rise_and_decline


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
        encoded: whether nothing inside an encoder changes: it then runs once, and :class:`Encoded` stands for it.
    """

    build: Callable[[nn.ModuleDict, int], tuple[AdapterModel, AdapterGuide]]
    kl_weight: float = 0.0
    random: bool = False
    encoded: bool = False


class Encoded(nn.Module):
    """Stands for a frozen encoder that has run: frames in, the same frames out, as a backbone of one block.

    Args:
        width: d, features of a frame.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = PretrainedConfig(hidden_size=width)
        self.block = nn.Identity()
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # a model asks its encoders where they are

    def forward(self, signal: Float[Tensor, "B P d"]) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.block(signal))


def _concat(rank: int) -> Callable[..., tuple[AdapterModel, AdapterGuide]]:
    def build(encoders: nn.ModuleDict, _count: int) -> tuple[AdapterModel, AdapterGuide]:
        # query and value of 2 layers of 5 encoders: 2,560 numbers a rank, and 641 of the head and for missing streams
        model = ConcatLoRA(encoders, Bernoulli(), targets=["query", "value"], rank=rank, alpha=4.0)
        return model, Delta(model)

    return build


_BLOCKS = dict.fromkeys(MODALITIES, Blocks((Block(*["block"] * 8),)))
"""The only block of :class:`Encoded`."""


def _wander(
    cp: str, guide: Callable[[AdapterModel], AdapterGuide], every_stream: bool = True
) -> Callable[..., tuple[AdapterModel, AdapterGuide]]:
    def build(encoders: nn.ModuleDict, count: int) -> tuple[AdapterModel, AdapterGuide]:
        # every stream keeps a residual where fusion follows "every layer"; an encoder that has run is one layer
        options: dict[str, Any] = {"lengths": dict.fromkeys(encoders, SECONDS), "fusion_rank": 8, "terms": 2, "cp": cp}
        if every_stream:
            options |= {"every_layer": True, "blocks": _BLOCKS}
        model = Wander(encoders, Bernoulli(), num_data=count, **options)
        return model, guide(model)

    return build


ADAPTED: dict[str, Method] = {
    "concat-lora": Method(_concat(2)),
    "concat-lora-r4": Method(_concat(4)),  # as large as wander
    "concat-lora-r7": Method(_concat(7)),  # as large as bayesian-wander
    "wander-released": Method(_wander("product_of_sums", Delta, every_stream=False), encoded=True),
    "wander": Method(_wander("product_of_sums", Delta), encoded=True),
    "wander-sum-of-products": Method(_wander("sum_of_products", Delta), encoded=True),
    "bayesian-wander": Method(
        _wander("sum_of_products", lambda model: MeanField(model, init_scale=0.02)),
        kl_weight=0.1,
        random=True,
        encoded=True,
    ),
}
"""Name → method. The KL weight of Bayesian Wander is tempered: at 1 its 7,520 factors pay more than 2,300 windows."""


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
        windows: split → what it is measured on, windows or, for encoders that have run, their frames.
        samples: posterior draws.
    """

    model: AdapterModel
    guide: AdapterGuide
    windows: Mapping[str, Signals]
    samples: int

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in [*self.model.trainable_parameters().values(), *self.guide.parameters()])

    def draws(self, split: str, present: Sequence[str]) -> Float[Tensor, "S N"]:
        names, windows = check_present(present), self.windows[split]
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
    if method.encoded:
        windows = {split: encoded(task, split) for split in SPLITS}
        encoders = nn.ModuleDict({name: Encoded(task.encoders[name].config.hidden_size) for name in MODALITIES})
    else:
        windows = dict(task.signals)
        encoders = nn.ModuleDict({name: copy.deepcopy(task.encoders[name]) for name in MODALITIES})
    model, guide = method.build(encoders, len(windows["train"].labels))
    data = WindowBatches(windows["train"], settings, seed)
    fit(
        model,
        guide,
        data,
        recipe=None,  # all methods alike, by the settings of the study
        epochs=settings.epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=settings.lr),
        scheduler=rise_and_decline(settings.epochs * len(data)),
        kl_weight=method.kl_weight,
        clip_norm=1.0,
        validation=list(WindowBatches(windows["validation"], settings, None)),
        num_samples=4 if method.random else 1,
        seed=seed,
        progress=False,
    )
    return Adapted(model, guide, windows, settings.samples if method.random else 1)


def encoded(task: Task, split: str) -> Signals:
    """Return the windows of a split with the frozen encoders' frames (N, 30, d) in the place of their samples."""
    return replace(task.signals[split], values={name: task.frames[split][name].values for name in MODALITIES})
