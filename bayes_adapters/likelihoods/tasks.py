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
from bayes_adapters.likelihoods._task_checks import (
    LEARNED,
    require_learnable,
    require_names,
    require_saved_name,
    require_tasks,
)
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

    **Learned weights.** With ``weights="learned"`` every task t of classes, labels or counts has a parameter ``s_t =
    log σ_t²``, trained and saved with the model under a flat prior, and the ELBO scores ::

        Σ_t [ exp(−s_t) log p_t(y_t | f_t) − n_t s_t / 2 ]        n_t: the labels of task t that an example has

    For one label that is ``log softmax(f / σ²)[y]`` with ``Σ_c exp(f_c / σ²) ≈ σ (Σ_c exp f_c)^(1/σ²)``, equal at
    σ = 1; elsewhere it is no density. With L_t, the mean nll of a label, the best s_t is ``log 2 L_t``, and what is
    left is ``½ Σ_t n_t (1 + log 2 L_t)``: the tasks' nll count by their logarithms, whatever their units. A task of
    real numbers or boxes keeps weight 1: the learned scale of its own likelihood, a density that may exceed 1, is its
    σ_t, and a second one would make the weight grow without end once ``log p > 0``. Pixels of :class:`Masks` count as
    their ``unit`` says.

    Args:
        tasks: name → likelihood.
        weights: name → w_t > 0; a task that is left out has weight 1; or ``learned``.

    Source of learned weights: Kendall, Gal and Cipolla 2018, arXiv 1705.07115, equations 5 to 10.

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

    def __init__(self, tasks: Mapping[str, Likelihood], weights: Mapping[str, float] | str | None = None) -> None:
        super().__init__()
        learned = isinstance(weights, str)
        given: Mapping[str, float] = {} if isinstance(weights, str) or weights is None else weights
        require_tasks(tasks, Likelihood, given)
        self.tasks = nn.ModuleDict(dict(tasks))
        self.num_outputs = sum(task.num_outputs for task in tasks.values())
        self._given = {name: float(given.get(name, 1.0)) for name in tasks}
        self.learned = tuple(name for name, task in tasks.items() if learned and task.bounded)
        if learned:
            require_learnable(weights, self.learned, tasks)
            self.log_variance = nn.Parameter(torch.zeros(len(self.learned)))

    @property
    def weights(self) -> dict[str, float]:
        """Task → w_t; of learned ones ``exp(−s_t)`` as it is now."""
        now = self.log_variance.detach().neg().exp().tolist() if self.learned else []
        return self._given | dict(zip(self.learned, now, strict=True))

    @property
    def each(self) -> dict[str, Likelihood]:
        """Task → its likelihood."""
        return {name: task for name, task in self.tasks.items() if isinstance(task, Likelihood)}

    @property
    def per_token(self) -> bool:  # type: ignore[override]
        """Whether one of the tasks has one target per token."""
        return any(task.per_token for task in self.each.values())

    @property
    def apart(self) -> bool:  # type: ignore[override]
        """Whether every task is: one with a target per example reads the mean over all tokens."""
        return all(task.per_token and task.apart for task in self.each.values())

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """Whether every task is."""
        return all(task.smooth for task in self.each.values())

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
        fixed = torch.tensor([*self._given.values()], device=outputs.device)
        if not self.learned:
            return TaskOutcomes(parts, fixed)
        found = dict(zip(self.learned, self.log_variance, strict=True))
        each = [(-found[name]).exp() if name in found else w for name, w in zip(parts, fixed, strict=True)]
        return TaskOutcomes(parts, torch.stack(each), {name: s / 2 for name, s in found.items()})

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
        # A task's own density: what stands beside it in the ELBO, such as the GIoU of boxes, is none.
        scores = {name: task.log_density for name, task in self.each.items()}
        return torch.stack([*fn.log_probs(fn.pack(targets), scores).values()]).sum(0)

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
        weights = {name: weight for name, weight in self._given.items() if not math.isclose(weight, 1.0)}
        return {"tasks": tasks, "weights": LEARNED if self.learned else weights}

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
