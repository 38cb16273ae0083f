"""``BayesTrainer``: Hugging Face's Trainer on the ELBO of a model and its guide."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from bayes_adapters.data.batch import Batch
from bayes_adapters.files import save
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.trainer import _checks, _loader, _predictive
from bayes_adapters.trainer._objective import Objective
from bayes_adapters.trainer._options import Options
from bayes_adapters.trainer._predictive import Predicted
from bayes_adapters.trainer._rows import LABELS, Rows, columns_of
from bayes_adapters.trainer._search import Search, called
from bayes_adapters.trainer._watch import Watch, Window
from bayes_adapters.training import _step_checks
from bayes_adapters.training._data import counts_data_set
from bayes_adapters.training._data_checks import require_num_data
from bayes_adapters.training._optimizer import trainable
from bayes_adapters.training._random import Generators
from bayes_adapters.training._settings import OWN, RecipeLike

ADAPTER = "adapter"
"""Folder of a checkpoint that :func:`bayes_adapters.load` reads."""


class BayesTrainer(Search, Trainer):  # type: ignore[misc]
    """A ``transformers.Trainer`` that minimises the negative ELBO per datum over a model and its guide.

    Formula: a step over the B examples of P processes and k micro-batches each minimises ``Σ_i (B_i / B) · loss_i``,
    loss_i being that of :class:`bayes_adapters.ELBO`: the KL of a data set is counted once. In one process, losses and
    weights are those of :func:`bayes_adapters.training.fit` with ``batches(…, seed=…)``; in several, those of one
    process, since noise is that of :class:`~bayes_adapters.inference.step_noise.StepNoise`.

    The log has ``loss``, ``nll``, ``kl`` (weighted) and ``kl_weight``, averages over the steps since the last.
    Evaluation averages S draws: ``eval_loss`` and ``eval_nll`` are −mean log posterior predictive density in nats,
    ``eval_total`` and ``eval_epistemic`` means over the examples. A checkpoint holds adapter and guide alone: in
    ``adapter/``, for :func:`bayes_adapters.load`, and in ``model.safetensors``, from which a run goes on, bitwise, or
    ends with its best.
    The Trainer seeds the global generators and leaves them so.

    Args:
        model: the model.
        guide: the guide made for it.
        args: ``TrainingArguments``; those that cannot work are refused by name. Learning rate, its schedule, clipping
            and weight decay are the Trainer's, whatever a recipe says; weight decay also pulls at the guide's
            parameters, beside the KL.
        data_collator: items → dictionary of tensors, or :class:`~bayes_adapters.Batch`; None is the Trainer's.
            ``labels``, or ``args.label_names``, are targets, everything else the backbone's arguments.
        train_dataset, eval_dataset: of dictionaries, or one large Batch, or whatever the collator takes. With
            ``remove_unused_columns``, dictionaries keep the arguments of backbone and head, modalities that are
            read, and labels. The number of training examples must be the model's ``num_data``, where that counts a KL.
        model_init: () or (trial) → (model, guide), in the place of both; for :meth:`hyperparameter_search`.
        kl_weight: w, a number or a schedule step → w; None is the recipe's, or 1.
        kl_mode: None is the recipe's, or ``"full"``.
        num_particles: draws of the latents per loss.
        num_samples: S at evaluation and prediction; None is the recipe's, or 8.
        recipe: as of ``fit``; of it kl_weight, kl_mode and num_samples are taken.
        options: other arguments of ``Trainer``: compute_metrics (its predictions are ``Prediction.mean``, probabilities
            of classes), callbacks, optimizers, processing_class.

    Raises:
        ConfigError: an option that cannot work, a model without guide, another ``num_data``.
        DataError: data without length, labels or one example per item.
        NonFiniteError: in training, a loss or gradient is NaN or infinite; no weight was changed by the step.
        MissingResourceError: accelerate is not installed.

    >>> import tempfile
    >>> from transformers import BertConfig, BertModel, TrainingArguments
    >>> from bayes_adapters import Categorical
    >>> from bayes_adapters.systems import build
    >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    >>> model, guide = build("c-lora", BertModel(BertConfig(vocab_size=40, **sizes)), Categorical(2))
    >>> data = [{"input_ids": [i, i + 1, i + 2], "labels": i % 2} for i in range(8)]
    >>> folder = tempfile.mkdtemp()
    >>> args = TrainingArguments(folder, max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True)
    >>> trainer = BayesTrainer(model, guide, args, train_dataset=data)
    >>> out = trainer.predict(data)
    >>> out.predictions.shape, out.predictive.epistemic.shape
    ((8, 2), torch.Size([8]))
    """

    control: Any
    eval_dataset: Any

    def __init__(
        self,
        model: AdapterModel | None = None,
        guide: AdapterGuide | None = None,
        args: Any = None,
        *,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        model_init: Callable[..., Any] | None = None,
        kl_weight: float | KLSchedule | None = None,
        kl_mode: KLMode | str | None = None,
        num_particles: int = 1,
        num_samples: int | None = None,
        recipe: RecipeLike | str | None = OWN,
        **options: Any,
    ) -> None:
        args = _loader.arguments(args)
        _checks.check_arguments(args, options)
        _checks.check_pair(model, guide, model_init)
        self.train_dataset = _loader.sized("train_dataset", train_dataset)
        self.args, self._model_init = args, model_init
        self.options = Options(kl_weight, kl_mode, num_particles, num_samples, recipe)
        self._trial: Any = None
        self._parts: Any = None
        self._window, self._begins = Window(), False
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: _loader.sized(f"eval_dataset {name!r}", part) for name, part in eval_dataset.items()}
        else:
            eval_dataset = _loader.sized("eval_dataset", eval_dataset)
        super().__init__(
            model=None if model_init is not None else self._objective(model, guide),
            args=args,
            data_collator=data_collator,
            train_dataset=self.train_dataset,
            eval_dataset=eval_dataset,
            model_init=model_init,
            **options,
        )
        self._watch = Watch(self)
        self.add_callback(self._watch)

    @property
    def elbo(self) -> ELBO:
        """What is trained: ``trainer.elbo.model`` and ``trainer.elbo.guide``."""
        found: ELBO = self.model.elbo
        return found

    # What is trained

    def call_model_init(self, trial: Any = None) -> Objective:
        trial = self._trial if trial is None else trial
        return self._objective(*_checks.made_pair(called(self._model_init, trial)))

    def _objective(self, model: Any, guide: Any) -> Objective:
        args, size = self.args, None if self.train_dataset is None else len(self.train_dataset)
        if size is not None and isinstance(model, AdapterModel) and counts_data_set(model):
            require_num_data(model.num_data, size)
        options = self.options.resolved(model, guide, args, size)
        self._samples = options.num_samples
        weighed = {name: getattr(options, name) for name in ("kl_weight", "kl_mode", "num_particles")}
        return Objective(ELBO(model, guide, **weighed, seed=args.seed if args.world_size > 1 else None))

    # Data

    def get_train_dataloader(self) -> DataLoader[Any]:
        args = self.args
        shuffle = _checks.value_of(getattr(args, "train_sampling_strategy", "random")) == "random"
        _checks.check_data_set("train_dataset", self.train_dataset)
        loader = self._loader(self.train_dataset, self._train_batch_size, shuffle, args.dataloader_drop_last)
        self._parts, self._steps = loader.batch_sampler, max(1, -(-len(loader) // args.gradient_accumulation_steps))
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        named = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.get_test_dataloader(self.eval_dataset[named] if isinstance(named, str) else named)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        return self._loader(_loader.sized("the data set", test_dataset), self.args.eval_batch_size, False, False)

    def _loader(self, dataset: Any, batch_size: int, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        labels = (*(self.args.label_names or ()), *LABELS)
        columns = columns_of(self.elbo, labels) if self.args.remove_unused_columns else None
        rows = Rows(dataset, self.data_collator, columns, self.elbo.model.likelihood, labels)
        return _loader.loader(rows, self.args, batch_size, shuffle, drop_last)

    # Steps

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, **options: Any) -> Any:
        """Train, by the settings of ``trial`` where it is given; afterwards every module has its own mode again."""
        if trial is not None:
            self.begin_trial(trial)
        with self._watch.modes_back():
            return super().train(resume_from_checkpoint, trial, **options)

    def begin_epoch(self, step: int) -> bool:
        """Choose the order of the epoch that optimiser step ``step`` is in; return whether it is the epoch's first."""
        self._parts.set_epoch(step // self._steps)
        self._begins = step % self._steps == 0
        return self._begins

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(float(sum(sample["count"] for sample in samples)), device=device)
        if self.args.world_size > 1:
            count = self.accelerator.reduce(count, reduction="sum")
        self._part = 0
        return samples, int(count)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        args, step = self.args, self.state.global_step
        generators = Generators({p.device for p in self.elbo.parameters()})
        with exclusive(), ExitStack() as around:
            if args.world_size > 1:
                around.enter_context(generators.of_part(args.seed, step, args.process_index, self._part))
            elif self._begins:
                generators.seed(args.seed, step // self._steps)
            if self._begins:
                around.enter_context(_step_checks.gradients_flow(self.elbo.model.backbone))
            self._begins = False
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:  # the step's last part, before the Trainer clips: inf would become 0
            parameters = trainable(self.elbo.model, self.elbo.guide)
            values = torch.stack([loss, _step_checks.gradient_norm(parameters).to(loss)]).tolist()
            _step_checks.check_finite(step, dict(zip(("loss", "grad_norm"), values, strict=True)), parameters)
        if self._part == 0:
            self._watch.saw(inputs["batch"], step)
        self._part += 1
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this process's part of the step's loss times the number of processes, which are averaged."""
        batch: Batch = inputs["batch"].to(self.args.device)
        _checks.require_targets(batch)
        terms = model(batch, self.state.global_step)
        share = inputs["count"] / (num_items_in_batch or inputs["count"])
        if self._part == 0:
            self._window.begin(self.elbo.kl_weight(self.state.global_step))
        self._window.add(share, terms["nll"], terms["kl"])
        loss = terms["loss"] * (share * self.args.world_size)
        return (loss, terms) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._window.steps:
            sums = self._window.sums
            if self.args.world_size > 1:
                sums = self.accelerator.reduce(sums, reduction="sum")
            logs |= self._window.averages(sums)
            self._window = Window()
        super().log(logs, start_time)

    # Prediction

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Predict the examples of ``dataloader`` by S draws; what is asked of losses and keys does nothing."""
        self.callback_handler.eval_dataloader = dataloader

        def told(batch: Batch) -> Batch:
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            return batch

        batches = (told(item["batch"]) for item in dataloader if item["count"])
        with self.accelerator.autocast():
            found, labels = _predictive.predicted(self.elbo, batches, self._samples, self.args.seed)
        self._predictive = found
        return _predictive.output(found, labels, self.compute_metrics, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> Predicted:
        """Return the posterior predictive of a data set: ``predictions`` are its means (of classes: probabilities).

        ``label_ids`` and the NLL are there where the data have labels. ``predictive`` is the whole
        :class:`~bayes_adapters.Prediction`, with the split of uncertainty.
        """
        out = Predicted(*super().predict(test_dataset, ignore_keys, metric_key_prefix))
        out.predictive = self._predictive
        return out

    # Files

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors, and in ``adapter/`` what :func:`bayes_adapters.load` reads."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(self.args.output_dir if output_dir is None else output_dir)
            save(os.fspath(folder / ADAPTER), self.elbo.model, self.elbo.guide)
