"""What a Trainer writes, and going on from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bayes_adapters import load, predict
from bayes_adapters.errors import ConfigError, NonFiniteError
from bayes_adapters.guides import MeanField
from bayes_adapters.trainer import BayesTrainer
from tests.helpers import bert
from tests.refusals import refuses
from tests.trainer.parts import WHOLE, arguments, pair

TEN = WHOLE[:10]
"""Batches of four, four and two: two epochs of three steps."""


def trained(folder: Path, resume: Any = None, **options: Any) -> BayesTrainer:
    few = {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 6, "gradient_accumulation_steps": 1}
    trainer = BayesTrainer(
        *pair(), arguments(folder, **(few | options)), train_dataset=TEN, eval_dataset=TEN[:6], kl_weight=0.1
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: BayesTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_run_goes_on_bitwise_where_it_was_stopped(tmp_path: Path) -> None:
    """In the middle of an epoch (after 2 of 3 steps), with dropout, and from the end of one (after 3)."""
    whole = weights(trained(tmp_path / "a"))
    for steps, name in ((2, "middle"), (3, "end")):
        trained(tmp_path / name, max_steps=steps, save_steps=steps)
        on = trained(tmp_path / name, str(tmp_path / name / f"checkpoint-{steps}"))
        assert on.state.global_step == 6
        assert whole.keys() == weights(on).keys()
        assert all(torch.equal(value, weights(on)[key]) for key, value in whole.items()), name


def test_a_checkpoint_has_adapter_and_guide_alone(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    held = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    own = {f"elbo.model.{name}" for name in trainer.elbo.model.trainable_parameters()}
    own |= {f"elbo.guide.{name}" for name, _ in trainer.elbo.guide.named_parameters()}
    assert own <= set(held)
    frozen = [name for name in held if ".backbone." in name and "lora" not in name]
    assert not frozen
    model, guide = load(tmp_path / "checkpoint-6" / "adapter", bert(1))
    batch = WHOLE.without_targets()
    expected = predict(trainer.elbo.model, trainer.elbo.guide, batch, num_samples=2)
    assert torch.equal(predict(model, guide, batch, num_samples=2).probs, expected.probs)


def test_the_best_checkpoint_is_the_one_that_is_left(tmp_path: Path) -> None:
    """Of rising losses the first is the best: a learning rate that only does harm."""
    options = {"load_best_model_at_end": True, "learning_rate": 1.0, "eval_strategy": "steps", "eval_steps": 3}
    options |= {"save_steps": 3}
    trainer = trained(tmp_path, **options)
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    nlls = {log["step"]: log["eval_nll"] for log in trainer.state.log_history if "eval_nll" in log}
    best = min(nlls, key=lambda step: nlls[step])
    assert state["best_metric"] == pytest.approx(nlls[best])
    held = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(value, held[name]) for name, value in weights(trainer).items())


def test_a_checkpoint_of_another_guide_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, max_steps=1, save_steps=1)
    other = BayesTrainer(*pair(MeanField), arguments(tmp_path, eval_strategy="no"), train_dataset=WHOLE)
    with refuses(ConfigError, "another model or guide", "elbo.guide"):
        other.train(resume_from_checkpoint=True)


def test_a_loss_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    model, guide = pair()
    with torch.no_grad():
        model.head.weight.fill_(1e38)
    args = arguments(tmp_path, eval_strategy="no", save_strategy="no")
    trainer = BayesTrainer(model, guide, args, train_dataset=WHOLE)
    before = weights(trainer)
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
