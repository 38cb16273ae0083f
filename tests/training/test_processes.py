"""Several processes train as one does: by fit, by the Trainer, and by a loop of DistributedDataParallel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from bayes_adapters import ELBO, AdapterGuide, AdapterModel
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.trainer import BayesTrainer
from bayes_adapters.training import batches, fit
from bayes_adapters.training._process_checks import check_batches, check_names, check_start, check_whole
from bayes_adapters.training._processes import Processes
from tests.helpers import bert, core_model, token_batch
from tests.processes import together
from tests.refusals import refuses
from tests.trainer.parts import arguments
from tests.training.parts import Items, join, pair, run

WHOLE = token_batch(11, seed=3)
"""In batches of four, two at a step: the first step has eight examples, the last three, one of them in one process."""


def made(granularity: str) -> tuple[AdapterModel, AdapterGuide]:
    """A model and a guide whose posterior is not its prior."""
    model = core_model(granularity, rank=2, num_data=WHOLE.size, backbone=bert(1))
    guide = Contextual(model) if granularity == "token" else MeanField(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_(0.0, 0.1)
    return model, guide


def tensors(model: AdapterModel, guide: AdapterGuide) -> dict[str, Tensor]:
    named = [*model.trainable_parameters().items(), *guide.named_parameters()]
    return {name: value.detach().clone() for name, value in named}


def by_fit(granularity: str) -> tuple[list[Any], dict[str, Tensor]]:
    model, guide = made(granularity)
    if torch.distributed.get_rank():
        with torch.no_grad():  # the first process's weights count
            model.head.weight.zero_()
    options: dict[str, Any] = {"validation": [WHOLE[:6], WHOLE[6:9]], "clip_norm": 1.0, "kl_weight": 0.1, "epochs": 1}
    found = fit(model, guide, batches(WHOLE, 4, seed=7), accumulate=2, progress=False, **options)
    names = ("loss", "nll", "kl", "val_nll", "grad_norm")
    return [[log[name] for name in names] for log in found.history], tensors(model, guide)


def by_trainer(granularity: str, count: int) -> tuple[list[Any], dict[str, Tensor]]:
    model, guide = made(granularity)
    args = arguments("unused", per_device_train_batch_size=4 // count, num_train_epochs=1, save_strategy="no")
    trainer = BayesTrainer(model, guide, args, train_dataset=WHOLE, eval_dataset=WHOLE[:5], kl_weight=0.1)
    trainer.elbo.seed = 7  # noise as in several processes
    trainer.train()
    losses = [[log[name] for name in ("loss", "nll", "kl")] for log in trainer.state.log_history if "loss" in log]
    found = trainer.predict(WHOLE[:5])
    return [*losses, [found.metrics["test_nll"]], found.predictions.tolist(), found.label_ids.tolist()], tensors(
        model, guide
    )


def by_hand(count: int) -> tuple[list[Any], dict[str, Tensor]]:
    """The gradient of one step: six examples, halved, in DistributedDataParallel or alone."""
    model, guide = made("global")
    elbo: Any = ELBO(model, guide, seed=0)
    mine = WHOLE[:6] if count == 1 else WHOLE[:6][torch.arange(6).reshape(2, 3)[torch.distributed.get_rank()]]
    wrapped = elbo if count == 1 else torch.nn.parallel.DistributedDataParallel(elbo)
    wrapped(mine, 3).backward()
    return [], {name: p.grad for name, p in elbo.named_parameters() if p.grad is not None}


def by_fits() -> dict[str, Any]:
    return {f"fit, {name}": by_fit(name) for name in ("token", "global")}


def by_others(count: int) -> dict[str, Any]:
    found = {f"trainer, {name}": by_trainer(name, count) for name in ("token", "global")}
    return found | {"by hand": by_hand(count)}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux" or not torch.distributed.is_available(), reason="forks, gloo")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss curves and weights, of local and of global latents, with accumulation and an uneven last step."""
    monkeypatch.chdir(tmp_path)
    one = by_others(1)
    with alone(tmp_path):
        one |= by_fits()
    for two in together(lambda: by_fits() | by_others(2), tmp_path):
        for way, (numbers, values) in one.items():
            its_numbers, its_values = two[way]
            assert its_values.keys() == values.keys(), way
            for name, value in values.items():
                assert float((its_values[name] - value).abs().max()) < 1e-5, (way, name)
            for mine, other in zip(numbers, its_numbers, strict=True):
                assert other == pytest.approx(mine, abs=1e-5), way


def test_processes_share_each_batch() -> None:
    """Unequal parts, an empty one, and numbers that tell the examples of a step apart."""
    seen: list[int] = []
    sizes = []
    bare = [type(WHOLE)(b.inputs, b.targets) for b in (WHOLE[:3], WHOLE[3:5])]
    for number in range(4):
        processes = Processes(torch.device("cpu"))
        processes.together, processes.count, processes.number = True, 4, number
        parts = processes.parts(bare)
        sizes.append([part.size for part in parts])
        seen += [int(i) for part in parts for i in part.ids]
    assert sizes == [[1, 1], [1, 1], [1], []]
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_each_batch_of_validation_has_one_process() -> None:
    numbers = []
    for number in range(2):
        processes = Processes(torch.device("cpu"))
        processes.count, processes.number = 2, number
        bare = [type(WHOLE)(WHOLE[:n].inputs, WHOLE[:n].targets) for n in (3, 2, 1)]
        numbers.append([batch.ids.tolist() for batch in processes.dealt(bare)])
    assert numbers == [[[0, 1, 2], [5]], [[3, 4]]]


def test_what_processes_must_have_in_common() -> None:
    check_start([[3, 2], [3, 2]])
    with refuses(ConfigError, "backbones of the 2 processes differ", "torch.manual_seed"):
        check_start([[3, 2], [4, 2]])
    with refuses(ConfigError, "different steps: [2, 0]"):
        check_start([[3, 2], [3, 0]])
    with refuses(ConfigError, "'model.head.weight'", "shard"):
        check_whole({"model.head.weight": SimpleNamespace(full_tensor=None)})
    with refuses(DataError, "different batches ([4, 4] examples)", "batches(…, seed=…)"):
        check_batches([[4, 9], [4, 8]])
    with refuses(ConfigError, "different metrics", "accuracy"):
        check_names([[1, 3], [2, 3]], ["accuracy"])


def test_a_share_of_the_data_is_refused(tmp_path: Path) -> None:
    sampler = DistributedSampler(Items(), num_replicas=2, rank=0)
    loader = DataLoader(Items(), batch_size=4, collate_fn=join, sampler=sampler)
    with alone(tmp_path), refuses(ConfigError, "DistributedSampler", "same data"):
        run(*pair(), loader, epochs=1)


def test_a_group_of_one_is_continued_as_it_was(tmp_path: Path) -> None:
    """Its noise is another one than that of fit alone, so neither continues the other."""
    with alone(tmp_path):
        run(*pair(), epochs=1, checkpoint=tmp_path / "run")
    with refuses(ConfigError, "noise: the checkpoint has 'of steps, in a process group', this run None"):
        run(*pair(), checkpoint=tmp_path / "run")
