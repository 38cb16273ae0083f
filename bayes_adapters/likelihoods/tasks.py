"""Several named tasks of one model: one posterior, one ELBO, one prediction for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.conditions import reworded
from bayes_adapters.errors import DataError
from bayes_adapters.likelihoods._outcomes import TaskOutcomes, labelled
from bayes_adapters.likelihoods._task_checks import require_names, require_saved_name, require_tasks
from bayes_adapters.likelihoods.base import Likelihood
from bayes_adapters.likelihoods.prediction import Prediction, side_by_side


class Tasks(Likelihood):
    """``log p(y | x, E) = Σ_t w_t log p_t(y_t | f_t)``: task t reads its own columns f_t of the head's outputs.

    Targets are a mapping task → tensor. An example without a label of a task, −100 or NaN, contributes nothing to that
    task, and so does a task that is left out of the mapping. The weights w_t temper the ELBO only: ``log_density`` of a
    prediction is ``Σ_t log p_t``, averaged over draws that explain all tasks together; that of one task is what a batch
    with the targets of this task only gives.

    A prediction of tasks holds one for each, ``prediction["sentiment"]``. Its own ``mean`` has the tasks' means side by
    side, shape (B, M), and its total, aleatoric and epistemic, shape (B,), are sums over tasks (and a task's labels or
    tokens): exact for aleatoric, since tasks are independent given a draw, and upper bounds for the other two.

    Tasks with one target per token (:class:`Tagging`) and tasks with one per example may stand side by side. The head
    then gives every token all K outputs, and a task of the whole example reads the mean of its columns over real
    tokens: ``f = (1/n) Σ_t f_t``, which with a linear head is that head on mean-pooled hidden states.

    Args:
        tasks: name → likelihood.
        weights: name → w_t > 0; a task that is left out has weight 1.

    >>> from bayes_adapters.likelihoods import Categorical, Gaussian
    >>> both = Tasks({"sentiment": Categorical(3), "length": Gaussian()})
    >>> both.num_outputs
    4
    >>> fn = both.distribution(torch.zeros(1, 2, 4))
    >>> both.log_density(fn, {"sentiment": torch.tensor([2, -100])}).exp()  # nothing is known of the second example
    tensor([[0.3333, 1.0000]])
    >>> both.predict(both.summarise(fn), 1)["sentiment"].mean.shape
    torch.Size([2, 3])
    """

    name: ClassVar[str] = "tasks"

    def __init__(self, tasks: Mapping[str, Likelihood], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        require_tasks(tasks, Likelihood, weights or {})
        self.tasks = nn.ModuleDict(dict(tasks))
        self.weights = {name: float((weights or {}).get(name, 1.0)) for name in tasks}
        self.num_outputs = sum(task.num_outputs for task in tasks.values())

    @property
    def each(self) -> dict[str, Likelihood]:
        """Task → its likelihood."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, Likelihood)}

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        """Whether one of the tasks has one target per token."""
        return any(task.per_token for task in self.each.values())

    def distribution(self, outputs: Float[Tensor, "*S B *T K"]) -> TorchDistributionMixin:
        if self.per_token:
            return self.of_tokens(outputs, None)
        return self._outcomes(outputs, lambda task, f: task.distribution(f))

    def of_tokens(self, outputs: Float[Tensor, "*S B T K"], real: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        return self._outcomes(
            outputs,
            lambda task, f: task.of_tokens(f, real) if task.per_token else task.distribution(_mean(f, real)),
        )

    def _outcomes(self, outputs: Tensor, of: Callable[[Likelihood, Tensor], Any]) -> TaskOutcomes:
        columns = outputs.split([task.num_outputs for task in self.each.values()], -1)
        parts = {name: of(task, f) for (name, task), f in zip(self.each.items(), columns, strict=True)}
        return TaskOutcomes(parts, torch.tensor([*self.weights.values()], device=outputs.device))

    def check(self, targets: Any) -> None:
        self.accept(targets)

    def accept(self, targets: Tensor | Mapping[str, Tensor]) -> None:
        targets = require_names(targets, self.each)
        known = torch.stack([labelled(v) for v in targets.values()]).tolist() if targets else []  # one wait for all
        for (name, values), flags in zip(targets.items(), known, strict=True):
            rows = [row for row, has_label in enumerate(flags) if has_label]
            with reworded(DataError, partial(_of_task, name)):
                if rows:
                    self.each[name].accept(values[torch.tensor(rows, device=values.device)])

    def advice(self, targets: Mapping[str, Tensor]) -> list[str]:
        known = {name: values[labelled(values)] for name, values in targets.items()}
        return [f"{name}: {text}" for name, values in known.items() for text in self.each[name].advice(values)]

    def observation(self, fn: Any, targets: Any) -> Tensor:
        return fn.pack(targets)

    def draw_mean(self, fn: Any) -> Float[Tensor, "S B M"]:
        return side_by_side([task.draw_mean(fn.parts[name]) for name, task in self.each.items()], 2)

    def log_density(self, fn: Any, targets: Mapping[str, Tensor]) -> Float[Tensor, "S B"]:
        return torch.stack([*fn.log_probs(fn.pack(targets)).values()]).sum(0)

    def summarise(self, fn: Any) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, task in self.each.items()
            for key, value in task.summarise(fn.parts[name]).items()
        }

    def predict(self, sums: dict[str, Tensor], num_samples: int) -> Prediction:
        found: dict[str, Prediction] = {}
        for name, task in self.each.items():
            own = {key.removeprefix(f"{name}."): value for key, value in sums.items() if key.startswith(f"{name}.")}
            found[name] = task.predict(own, num_samples)
        summed = [part.summed() for part in found.values()]
        total, aleatoric, epistemic = (
            torch.stack([getattr(part, name) for part in summed]).sum(0) for name in ("total", "aleatoric", "epistemic")
        )
        mean = side_by_side([part.mean for part in found.values()], 1)
        return Prediction(mean, total, aleatoric, epistemic, num_samples, tasks=found)

    def config(self) -> dict[str, Any]:
        for task in self.each.values():
            require_saved_name(type(task))
        tasks = {name: {"name": task.name, "config": task.config()} for name, task in self.each.items()}
        weights = {name: weight for name, weight in self.weights.items() if not math.isclose(weight, 1.0)}
        return {"tasks": tasks, "weights": weights}

    @classmethod
    def from_config(cls, config: dict[str, Any], find: Callable[[str], type[Likelihood]]) -> Likelihood:
        tasks = {name: find(task["name"]).from_config(task["config"], find) for name, task in config["tasks"].items()}
        return cls(tasks, config["weights"])


def _of_task(name: str, error: Exception) -> DataError:
    return DataError(f"Targets of the task {name!r}, its unlabelled examples left out: {error}")


def _mean(outputs: Float[Tensor, "*S B T K"], real: Bool[Tensor, "B T"] | None) -> Float[Tensor, "*S B K"]:
    """Return the mean of the outputs over real tokens, or over all where an example has none: they are then alike."""
    if real is None:
        return outputs.mean(-2)
    real = real | ~real.any(-1, keepdim=True)
    return outputs.masked_fill(~real[..., None], 0.0).sum(-2) / real.sum(-1, keepdim=True)
