"""Evaluation and prediction: averages over draws, as ``predict`` makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, LlamaConfig, LlamaForCausalLM

from bayes_adapters import Batch, Categorical, Tagging, predict
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.heads import AnswerTokens
from bayes_adapters.models import LoRA
from bayes_adapters.trainer import BayesTrainer
from bayes_adapters.trainer._rows import Parts, Rows
from tests.helpers import GUIDES, VOCAB
from tests.refusals import refuses
from tests.trainer.parts import WHOLE, arguments, pair

ITEMS = [{"input_ids": [i % VOCAB, (3 * i) % VOCAB, 5], "labels": i % 3, "text": f"text {i}"} for i in range(11)]
"""As data sets have them: whole numbers, and a column that no backbone takes."""


def whole(items: list[dict[str, Any]]) -> Batch:
    ids = torch.tensor([item["input_ids"] for item in items])
    return Batch({"input_ids": ids}, torch.tensor([item["labels"] for item in items]))


def trainer(folder: Path, **options: Any) -> BayesTrainer:
    model, guide = pair(likelihood=Categorical(3))
    args = arguments(folder, save_strategy="no", **options.pop("args", {}))
    given = {"train_dataset": ITEMS, "eval_dataset": ITEMS[:7], "num_samples": 4, "kl_weight": 0.1} | options
    return BayesTrainer(model, guide, args, **given)


def test_the_prediction_is_the_posterior_predictive(tmp_path: Path) -> None:
    """In batches of four and three, in the order of the data, of a dictionary's labels."""
    asked: list[Any] = []

    def compute_metrics(found: Any) -> dict[str, float]:
        asked.append(found.predictions)
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    made = trainer(tmp_path, args={"per_device_eval_batch_size": 4}, compute_metrics=compute_metrics)
    out = made.predict(ITEMS[:7])
    expected = predict(made.elbo.model, made.elbo.guide, whole(ITEMS[:7]), num_samples=4, seed=7)
    predictions, labels, metrics = out
    torch.testing.assert_close(torch.tensor(predictions), expected.probs)
    torch.testing.assert_close(out.predictive.epistemic, expected.epistemic)
    assert labels.tolist() == [item["labels"] for item in ITEMS[:7]]
    assert torch.tensor(asked[0]).sum(-1).tolist() == pytest.approx([1.0] * 7)
    assert metrics["test_nll"] == metrics["test_loss"] == pytest.approx(-float(expected.log_density.mean()), abs=1e-6)
    right = expected.probs.argmax(-1) == torch.tensor(labels)
    assert metrics["test_accuracy"] == pytest.approx(float(right.double().mean()))
    named = [{"input_ids": item["input_ids"], "answer": item["labels"]} for item in ITEMS[:7]]
    other = trainer(tmp_path, args={"label_names": ["answer"]})
    assert other.predict(named).metrics["test_nll"] == pytest.approx(metrics["test_nll"])
    unlabelled = made.predict([{"input_ids": item["input_ids"]} for item in ITEMS[:3]])
    assert unlabelled.label_ids is None
    assert "test_nll" not in unlabelled.metrics


def test_training_of_dictionaries_ends_early(tmp_path: Path) -> None:
    """No epoch is better by as much as is asked, so the second ends the run; each data set has its own metrics."""
    args = {"num_train_epochs": 4, "metric_for_best_model": "a_nll", "greater_is_better": False}
    stop = EarlyStoppingCallback(1, early_stopping_threshold=100.0)
    made = trainer(tmp_path, args=args, callbacks=[stop], eval_dataset={"a": ITEMS[:3], "b": whole(ITEMS[3:7])})
    before = {name: module.training for name, module in made.elbo.named_modules()}
    made.train()
    assert before == {name: module.training for name, module in made.elbo.named_modules()}
    assert made.state.epoch == 2.0
    assert {"eval_a_nll", "eval_b_nll"} <= {name for log in made.state.log_history for name in log}


def test_parts_are_the_batches_of_all_processes() -> None:
    """Each example once, in one process; the same numbers of batches; another order in another epoch."""
    parts = [Parts(11, 4, seed=3, process=process, processes=3) for process in range(3)]
    drawn = [list(part) for part in parts]
    assert [len(rows) for rows in drawn] == [3, 3, 3]
    assert sorted(row for rows in drawn for batch in rows for row in batch) == list(range(11))
    parts[0].set_epoch(1)
    assert list(parts[0]) != drawn[0]
    assert [list(Parts(4, 3, shuffle=False, process=p, processes=2)) for p in (0, 1)] == [[[0, 1], [3]], [[2], [-4]]]


def test_a_row_that_pads_a_process_counts_nowhere() -> None:
    rows = Rows(ITEMS, lambda items: whole(items), None, Categorical(3))
    assert [rows.__getitems__(numbers)["count"] for numbers in ([2, 3], [-4])] == [2, 0]
    assert rows.__getitems__([-4])["batch"].ids.tolist() == [3]


def test_labels_have_the_dtype_of_the_likelihood() -> None:
    """Zeros and ones of a collator are whole numbers, which classes take, and a Bernoulli does not."""
    collate = lambda items: {"input_ids": torch.zeros(len(items), 1, dtype=torch.long), "labels": torch.tensor(items)}  # noqa: E731
    assert Rows([0, 1], collate, None, pair()[0].likelihood).__getitems__([0, 1])["batch"].targets.dtype == torch.float
    assert Rows([0, 1], collate, None, Categorical(2)).__getitems__([0, 1])["batch"].targets.dtype == torch.long


def test_data_that_are_no_examples_are_refused(tmp_path: Path) -> None:
    with refuses(DataError, "train_dataset", "a list of batches"):
        trainer(tmp_path, train_dataset=[WHOLE[:4], WHOLE[4:8]])
    with refuses(DataError, "eval_dataset", "generator"):
        trainer(tmp_path, eval_dataset=(item for item in ITEMS))
    with refuses(DataError, "'text'", "remove_unused_columns"):
        trainer(tmp_path, args={"remove_unused_columns": False}, data_collator=columns).predict(ITEMS)
    with refuses(DataError, "a list"):
        trainer(tmp_path, data_collator=lambda items: items).predict(ITEMS)
    with refuses(DataError, 1, 8):
        trainer(tmp_path, data_collator=lambda items: whole(items[:1])).predict(ITEMS)
    with refuses(DataError, "labels"):
        trainer(tmp_path, train_dataset=[{"input_ids": [1]}]).train()


def test_a_context_that_was_forgotten_is_refused(tmp_path: Path) -> None:
    model, guide = pair(GUIDES["cross_attention"])
    bare = Batch(WHOLE.inputs, WHOLE.targets)[:8]
    args = arguments(tmp_path, save_strategy="no", eval_strategy="no")
    with refuses(DataError, "'audio'", "no batch of the epoch"):
        BayesTrainer(model, guide, args, train_dataset=bare).train()


def columns(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"input_ids": torch.zeros(len(items), 1, dtype=torch.long), "text": [item["text"] for item in items]}


def test_labels_of_tokens_are_padded(tmp_path: Path) -> None:
    """Texts of unequal length in two batches of evaluation."""
    model, guide = pair(Contextual, likelihood=Tagging(3))
    args = arguments(tmp_path, save_strategy="no", per_device_eval_batch_size=1)
    items = [{"input_ids": [1, 2, 3], "labels": [0, 1, 2]}, {"input_ids": [1], "labels": [2]}]
    out = BayesTrainer(model, guide, args, eval_dataset=items, num_samples=2).predict(items)
    assert out.label_ids.tolist() == [[0, 1, 2], [2, -100, -100]]
    assert out.predictions.shape == (2, 3, 3)


def test_an_input_of_the_head_alone_is_no_unused_column(tmp_path: Path) -> None:
    """An answer that an example does not have has probability 0."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    model = LoRA(net, Categorical(3), rank=1, targets=["q_proj"], head=AnswerTokens([3, 5, 7]))
    items = [{"input_ids": [1, 2], "answer_mask": [True, True, i == 0], "labels": i} for i in range(2)]
    made = BayesTrainer(model, Delta(model), arguments(tmp_path, eval_strategy="no"), num_samples=1)
    assert made.predict(items).predictions[:, 2].nonzero()[0].tolist() == [0]
