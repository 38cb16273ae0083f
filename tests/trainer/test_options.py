"""Options that a Trainer refuses by name, and the search of the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bayes_adapters.errors import ConfigError, MissingResourceError
from bayes_adapters.guides import MeanField
from bayes_adapters.trainer import BayesTrainer, _checks, _loader
from bayes_adapters.trainer._search import RandomTrial
from tests.refusals import refuses
from tests.trainer.parts import WHOLE, arguments, pair


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("neftune_noise_alpha", 5.0),
        ("auto_find_batch_size", True),
        ("include_for_metrics", ["inputs"]),
        ("train_sampling_strategy", "group_by_length"),
        ("optim", "galore_adamw"),
        ("bf16_full_eval", True),
        ("ignore_data_skip", True),
        ("label_names", ["start", "end"]),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    args = arguments(tmp_path)
    object.__setattr__(args, name, value)
    with refuses(ConfigError, name):
        BayesTrainer(*pair(), args, train_dataset=WHOLE, eval_dataset=WHOLE)


@pytest.mark.parametrize("name", ["fp16", "torch_compile", "fsdp", "deepspeed", "gradient_checkpointing"])
def test_so_is_one_that_this_machine_could_not_set(name: str) -> None:
    args = SimpleNamespace(optim="adamw_torch", **{name: "full_shard"})
    with refuses(ConfigError, name):
        _checks.check_arguments(args, {})


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, guide = pair(MeanField, granularity="global")
    with refuses(ConfigError, "num_data=50", 22):
        BayesTrainer(model, guide, arguments(tmp_path), train_dataset=WHOLE, eval_dataset=WHOLE)
    with refuses(ConfigError, "a model and its guide"):
        BayesTrainer(model, args=arguments(tmp_path))
    with refuses(ConfigError, "model_init"):
        BayesTrainer(model, guide, arguments(tmp_path), model_init=pair)
    with refuses(ConfigError, "compute_loss_func"):
        BayesTrainer(model, guide, arguments(tmp_path), compute_loss_func=print)


def test_suggestions_are_in_their_ranges() -> None:
    for number in range(30):
        trial = RandomTrial(0, number)
        assert 0.1 <= trial.suggest_float("a", 0.1, 10.0, log=True) <= 10.0
        assert trial.suggest_float("b", 0.0, 1.0, step=0.25) in (0.0, 0.25, 0.5, 0.75, 1.0)
        assert trial.suggest_int("c", 2, 6, step=2) in (2, 4, 6)
        assert 1 <= trial.suggest_int("d", 1, 9, log=True) <= 9
        assert trial.suggest_categorical("e", ["x", "y"]) in ("x", "y")
        assert trial.params.keys() == {"a", "b", "c", "d", "e"}
    assert len({RandomTrial(0, number).suggest_int("c", 1, 3) for number in range(30)}) == 3
    assert RandomTrial(0, 4).suggest_float("a", 0, 1) == RandomTrial(0, 4).suggest_float("a", 0, 1)


def test_a_search_returns_the_best_of_its_trials(tmp_path: Path) -> None:
    """Each trial has a model of its own, its own settings and a folder; the Trainer's arguments are as before."""
    ranks: list[Any] = []

    def model_init(trial: Any) -> Any:
        ranks.append(None if trial is None else trial.params.get("rank"))
        return pair(rank=ranks[-1] or 2)

    def space(trial: Any) -> dict[str, Any]:
        rate = trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True)
        return {"learning_rate": rate, "kl_weight": 0.5, "rank": trial.suggest_int("rank", 1, 3)}

    args = arguments(
        tmp_path, max_steps=1, gradient_accumulation_steps=1, eval_strategy="no", save_strategy="steps", save_steps=1
    )
    trainer = BayesTrainer(args=args, model_init=model_init, train_dataset=WHOLE, eval_dataset=WHOLE[:4])
    best = trainer.hyperparameter_search(space, n_trials=2, seed=1)
    objectives = [objective for _, objective in best.run_summary]
    assert best.objective == min(objectives)
    assert best.hyperparameters == best.run_summary[int(best.run_id)][0]
    assert len(set(objectives)) == 2
    assert ranks[0] is None
    assert ranks[1:] == [settings["rank"] for settings, _ in best.run_summary]
    assert trainer.elbo.kl_weight(0) == 0.5
    assert trainer.args.learning_rate == 1e-2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1"]
    with refuses(ConfigError, "hp_space"):
        trainer.hyperparameter_search()


def test_it_says_that_it_needs_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """``TrainingArguments`` ask for it, in an ImportError."""

    def missing(_folder: str) -> None:
        raise ImportError("accelerate")

    monkeypatch.setattr(_loader, "TrainingArguments", missing)
    with refuses(MissingResourceError, "accelerate", "BayesTrainer", "pip install '.[trainer]'"):
        BayesTrainer()
