"""A Trainer takes the steps that ``fit`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters.schedules import LinearWarmup
from bayes_adapters.systems import build
from bayes_adapters.trainer import BayesTrainer
from bayes_adapters.training import batches, fit
from tests.helpers import bert
from tests.trainer.parts import WHOLE, arguments, pair


def test_losses_and_weights_are_those_of_fit(tmp_path: Path) -> None:
    """With dropout, accumulation, a last step of six examples for eight, a KL schedule, clipping and validation."""
    schedule, validation = LinearWarmup(steps=4, weight=0.2), WHOLE[:6]
    model, guide = pair()
    options: dict[str, Any] = {"kl_weight": schedule, "clip_norm": 1.0, "validation": validation, "epochs": 2}
    options |= {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0), "restore_best": False}
    result = fit(model, guide, batches(WHOLE, 4, seed=7), accumulate=2, seed=7, progress=False, **options)
    its_model, its_guide = pair()
    args, data = arguments(tmp_path, save_strategy="no"), {"train_dataset": WHOLE, "eval_dataset": validation}
    trainer = BayesTrainer(its_model, its_guide, args, kl_weight=schedule, **data)
    trainer.train()
    history = trainer.state.log_history
    steps = [log for log in history if "loss" in log]
    for name in ("loss", "nll", "kl", "kl_weight"):
        values = torch.tensor([log[name] for log in steps]).reshape(2, 3)
        epochs = (values @ torch.tensor([8.0, 8.0, 6.0]) / 22).tolist()  # the mean over examples, as fit has it
        assert epochs == pytest.approx([log[name] for log in result.history], abs=1e-5), name
    found = [log["eval_nll"] for log in history if "eval_nll" in log]
    assert found == pytest.approx([log["val_nll"] for log in result.history], abs=1e-5)
    assert apart((model, guide), (its_model, its_guide)) < 1e-5


def apart(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    """The largest difference of trained entries."""
    first, second = (
        dict([*model.trainable_parameters().items(), *guide.named_parameters()]) for model, guide in (one, other)
    )
    return max(float((value - second[name]).detach().abs().max()) for name, value in first.items())


def test_the_recipe_gives_the_weight_of_the_kl(tmp_path: Path) -> None:
    """C-LoRA's is that of a batch, w · B / L; a weight of one's own comes with the ELBO's normalisation."""
    torch.manual_seed(0)
    model, guide = build("c-lora", bert(), pair()[0].likelihood)
    args = arguments(tmp_path, save_strategy="no")
    own = BayesTrainer(model, guide, args, train_dataset=WHOLE, eval_dataset=WHOLE)
    expected = guide.recipe.fit_options(model, guide, num_data=22, batch_size=8, max_steps=6)
    assert own.elbo.kl_weight(3) == expected["kl_weight"](3)
    assert own.elbo.kl_mode == expected.get("kl_mode", "full")
    chosen = BayesTrainer(model, guide, args, train_dataset=WHOLE, eval_dataset=WHOLE, kl_weight=0.5)
    assert chosen.elbo.kl_weight(3) == 0.5
    plain = BayesTrainer(model, guide, args, train_dataset=WHOLE, eval_dataset=WHOLE, recipe=None)
    assert plain.elbo.kl_weight(3) == 1.0
