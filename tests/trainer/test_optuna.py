"""The Trainer's search by Optuna: priors, guides and KL weights, pruning, and a study that processes share."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import optuna
import pyro.distributions as dist
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.trainer import BayesTrainer
from tests.refusals import refuses
from tests.trainer.parts import WHOLE, arguments, pair

GUIDES = {"mean_field": MeanField, "contextual": Contextual, "delta": Delta}
SMALL = WHOLE[:8]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space(trial: Any) -> dict[str, Any]:
    """A KL weight, a prior's scale and a guide beside a field of the arguments."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-1, log=True),
        "kl_weight": trial.suggest_categorical("kl_weight", [0.01, 0.1, 1.0]),
        "prior": trial.suggest_float("prior", 0.1, 2.0),
        "guide": trial.suggest_categorical("guide", list(GUIDES)),
    }


def made(trial: Any) -> Any:
    """The pair of a trial, of Optuna's kind or a dictionary as Ray's."""
    chosen = {} if trial is None else trial if isinstance(trial, dict) else trial.params
    prior = dist.Normal(0.0, chosen.get("prior", 1.0))
    return pair(GUIDES[chosen.get("guide", "delta")], prior=prior)


def searching(folder: Path, model_init: Any = made, **options: Any) -> BayesTrainer:
    few = {"max_steps": 1, "gradient_accumulation_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    args = arguments(folder, **(few | options))
    return BayesTrainer(
        args=args, model_init=model_init, train_dataset=SMALL, eval_dataset=SMALL[:4], num_samples=2, kl_weight=0.5
    )


def test_it_sweeps_priors_guides_and_weights_of_the_kl(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each trial trains by what it suggests; the best one is trained again to the same number."""
    trainer = searching(tmp_path)
    seen: list[dict[str, Any]] = []

    def objective(metrics: dict[str, float]) -> float:
        model, guide = trainer.elbo.model, trainer.elbo.guide
        own = {"guide": type(guide), "kl_weight": trainer.elbo.kl_weight(0), "rate": trainer.args.learning_rate}
        seen.append(own | {"prior": float(model.prior.of(model.sites[0]).stddev.max()), "nll": metrics["eval_nll"]})
        return metrics["eval_nll"]

    study = {"sampler": optuna.samplers.RandomSampler(seed=3), "study_name": "s", "storage": _journal(tmp_path)}
    with caplog.at_level(logging.WARNING):
        best = trainer.hyperparameter_search(space, objective, n_trials=3, backend="optuna", **study)
    assert "Trying to set" not in caplog.text
    trials = optuna.load_study(study_name="s", storage=_journal(tmp_path)).trials
    for trial, found in zip(trials, seen, strict=True):
        assert found["guide"] is GUIDES[trial.params["guide"]]
        assert found["kl_weight"] == trial.params["kl_weight"]
        assert found["rate"] == trial.params["learning_rate"]
        assert found["prior"] == pytest.approx(trial.params["prior"], rel=1e-6)
        assert found["nll"] == trial.value
    assert len({tuple(trial.params.values()) for trial in trials}) == 3
    assert best.objective == min(trial.value for trial in trials)
    assert (trainer.args.learning_rate, trainer.options.kl_weight) == (1e-2, 0.5), "as before the search"
    trainer.train(trial=optuna.trial.FixedTrial(best.hyperparameters))
    assert trainer.evaluate()["eval_nll"] == pytest.approx(best.objective, abs=1e-6)


def _journal(folder: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(folder / "study.log")))


def test_a_setting_of_one_trial_is_not_the_next_ones(tmp_path: Path) -> None:
    """A space with a branch: the second trial says nothing of the rate, and has the Trainer's own."""
    rates: list[float] = []

    def branch(trial: Any) -> dict[str, Any]:
        return {"learning_rate": trial.suggest_float("learning_rate", 0.5, 0.6)} if trial.number == 0 else {}

    trainer = searching(tmp_path)
    trainer.hyperparameter_search(
        branch, lambda _: rates.append(trainer.args.learning_rate) or 0.0, n_trials=2, backend="optuna"
    )
    assert rates[0] >= 0.5
    assert rates[1] == 1e-2


def test_a_trial_that_does_worse_is_pruned(tmp_path: Path) -> None:
    """After the first evaluation, where the threshold is below any NLL: one step of two is taken."""
    trainer = searching(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1)
    study = {"storage": _journal(tmp_path), "study_name": "pruned", "pruner": optuna.pruners.ThresholdPruner(upper=0.0)}
    with refuses(ValueError, "No trials are completed yet"):
        trainer.hyperparameter_search(space, n_trials=1, backend="optuna", **study)
    (trial,) = optuna.load_study(study_name="pruned", storage=_journal(tmp_path)).trials
    assert trial.state == TrialState.PRUNED
    assert list(trial.intermediate_values) == [1]


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    """Trials are numbered once, each process has made some, and both name the same best when all are done."""
    torch.multiprocessing.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    best = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    trials = optuna.load_study(study_name="s", storage=_journal(tmp_path)).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert sorted(trial.user_attrs["process"] for trial in trials) == [0, 0, 1, 1]
    assert len({trial.params["learning_rate"] for trial in trials}) == 4
    assert best[0] == best[1] == min((trial.value, trial.number) for trial in trials)
    assert len({path.name for path in tmp_path.glob("run-*")}) == 4, "each run has a folder of its own"


def _worker(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def suggest(trial: Any) -> dict[str, Any]:
        trial.set_user_attr("process", number)
        return space(trial)

    study = {"study_name": "s", "storage": _journal(Path(folder)), "load_if_exists": True}
    sampler = optuna.samplers.RandomSampler(seed=number)
    trainer = searching(Path(folder), save_strategy="steps", save_steps=1)
    trainer.hyperparameter_search(suggest, n_trials=2, backend="optuna", sampler=sampler, **study)
    (Path(folder) / f"done-{number}").touch()
    while len(list(Path(folder).glob("done-*"))) < 2:
        time.sleep(0.05)
    best = optuna.load_study(study_name="s", storage=_journal(Path(folder))).best_trial
    torch.save((best.value, best.number), Path(folder) / f"{number}.pt")


def test_what_a_search_cannot_do_is_refused(tmp_path: Path) -> None:
    with refuses(ConfigError, "n_jobs=2", "storage="):
        searching(tmp_path).hyperparameter_search(space, backend="optuna", n_jobs=2)
    bare = BayesTrainer(*pair(), arguments(tmp_path), train_dataset=WHOLE, eval_dataset=WHOLE)
    with refuses(ConfigError, "model_init="):
        bare.hyperparameter_search(space, backend="optuna")
    with refuses(ConfigError, "model_init="):
        bare.train(trial=optuna.trial.FixedTrial({}))
    with refuses(ConfigError, "'prior'", "kl_weight"):
        searching(tmp_path, lambda: pair()).hyperparameter_search(space, n_trials=1, backend="optuna")


def test_a_dictionary_is_a_trial_as_rays_are(tmp_path: Path) -> None:
    """Ray is not here, without which transformers knows no dictionary: what happens before it looks."""
    trainer, trial = searching(tmp_path), {"learning_rate": 0.5, "kl_weight": 0.25, "guide": "mean_field"}
    trial["warmup_steps"] = 0.1  # a share of the steps; the default is the whole number 0
    trainer.begin_trial(trial)
    trainer.model = trainer.call_model_init(trial)
    assert (trainer.args.learning_rate, trainer.elbo.kl_weight(0)) == (0.5, 0.25)
    assert trainer.args.warmup_steps == 0.1
    assert type(trainer.elbo.guide) is MeanField
