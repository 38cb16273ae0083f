"""SWAG: the weights that training passes through, gathered while ``fit`` runs, and the Gaussian with their moments.

Source: Maddox et al. 2019, arXiv 1902.02476; the mean alone is SWA, Izmailov et al. 2018, arXiv 1803.05407.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.guides import SWAG
from bayes_adapters.heads import LinearHead
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.draws import weight_mean
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._rebuild import rebuilt
from bayes_adapters.surgery.random_weights import Weights, random_weights, read_weights, trained_factors


class Trajectory:
    """The moments of the weights along training: ``fit(…, on_step=trajectory)``, then ``trajectory.posterior(…)``.

    At step ``start`` and every ``every`` steps from there on, with w the weights and n how many were gathered before::

        w̄ ← (n w̄ + w) / (n + 1),   w̄² ← (n w̄² + w²) / (n + 1),   D gets the column w − w̄, and keeps its last K

    w are A and B of every layer, except one that is frozen, and the weights of a linear head; or a model's own random
    sites, at the guide's means. What else is trained (σ of a likelihood, another head) is averaged, and is no random
    weight afterwards. SWAG wants SGD with a rate high enough to move about: with a rate that has decayed to 0 the
    moments are those of a point.

    ``fit`` keeps what was gathered in its checkpoints. With ``restore_best`` and a monitor the model may end elsewhere;
    the posterior is where the trajectory was.

    Args:
        start: the first optimiser step that counts, from 1.
        every: steps between two that count, such as those of an epoch.
        columns: K, 0 for SWAG-diagonal.
        weights: ``"factors"`` or ``"sites"``; None is the first for a model without random sites.

    Raises:
        ConfigError: an option is out of range.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> from bayes_adapters.training import fit
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> data = Batch({"input_ids": torch.randint(20, (16, 6))}, targets=torch.randint(2, (16,)).float())
    >>> lora = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> path = Trajectory(start=20, every=5, columns=3)
    >>> sgd = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
    >>> _ = fit(lora, Delta(lora), data, max_steps=40, optimizer=sgd, on_step=path, progress=False)
    >>> model, guide = path.posterior(lora, Delta(lora), num_data=16)
    >>> path.count, bool((predict(model, guide, data).epistemic > 0).all())
    (5, True)
    """

    def __init__(self, *, start: int, every: int, columns: int = 20, weights: Weights | str | None = None) -> None:
        whole_number("start", start)
        whole_number("every", every)
        whole_number("columns", columns, least=0 if columns == 0 else 2)
        self.start, self.every, self.columns, self.weights = start, every, columns, weights
        self.count = 0
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.deviations: dict[str, Tensor] = {}
        self.others: dict[str, Tensor] = {}

    def __call__(self, step: int, model: AdapterModel, guide: AdapterGuide, _: Any = None) -> None:
        """Gather at the steps that count: the signature of ``fit``'s ``on_step``."""
        if step >= self.start and (step - self.start) % self.every == 0:
            self.gather(model, guide)

    @torch.no_grad()
    def gather(self, model: AdapterModel, guide: AdapterGuide) -> None:
        """Take the weights of model and guide, as they are now, into the moments.

        Raises:
            ConfigError: there are other weights than those gathered before.
        """
        kind, head = self._kind(model)
        values = weight_mean(model, guide) if kind is Weights.SITES else trained_factors(model, guide, head=head)
        shapes, before = ({n: tuple(v.shape) for n, v in held.items()} for held in (values, self.means))
        if self.count and shapes != before:
            raise ConfigError(
                f"This trajectory gathered weights of shapes {before}, and now sees {shapes}. Ranks were pruned on the "
                "way, or it watches a second adapter: make a new Trajectory, starting after the last pruning."
            )
        for name, value in values.items():
            w = float64(value).cpu()
            self.means[name] = self._averaged(self.means.get(name), w)
            self.squares[name] = self._averaged(self.squares.get(name), w.square())
            if self.columns:
                kept = self.deviations.get(name, w.new_zeros(0, *w.shape))
                self.deviations[name] = torch.cat([kept, (w - self.means[name])[None]])[-self.columns :]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not _is_random(name, kind, head):
                self.others[name] = self._averaged(self.others.get(name), float64(parameter.detach()).cpu())
        self.count += 1

    @torch.no_grad()
    def posterior(
        self, model: AdapterModel, guide: AdapterGuide, *, num_data: int | None = None
    ) -> tuple[AdapterModel, SWAG]:
        """Return a new model and the guide with the moments gathered, in eval mode.

        Args:
            model: the one that was trained, which stays as it is.
            guide: its guide.
            num_data: N of the new model, where the old one has none; no prediction depends on it.

        Returns:
            On a copy of the backbone that shares the memory of the frozen weights.

        Raises:
            ConfigError: fewer than two weights were gathered, or fewer than ``columns``.
        """
        require_pair(model, guide)
        if self.count < max(2, self.columns):
            raise ConfigError(
                f"SWAG needs {max(2, self.columns)} gathered weights (columns={self.columns}), and has {self.count}. "
                f"Training counts at step {self.start} and every {self.every} from there on: start earlier, gather "
                "more often, or train longer, or take fewer columns."
            )
        kind, head = self._kind(model)
        if kind is Weights.SITES:
            new, _ = rebuilt(model, guide)
        else:
            new, _ = random_weights(model, guide, kind, head=head, num_data=num_data)
        for name, parameter in new.named_parameters():
            if name in self.others:
                parameter.data = self.others[name].to(parameter)
        result = SWAG(new, columns=self.columns).eval()
        means, squares = (torch.cat([m[s.name].flatten() for s in new.sites]) for m in (self.means, self.squares))
        deviations = means.new_zeros(0, len(means))
        if self.columns:
            deviations = torch.cat([self.deviations[s.name].flatten(1) for s in new.sites], 1)
        result.place(means, (squares - means.square()).clamp_min(0.0), deviations)
        return new, result

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered, for ``fit``'s checkpoints."""
        parts = {"means": self.means, "squares": self.squares, "deviations": self.deviations, "others": self.others}
        return {"count": self.count} | {f"{part}/{name}": v for part, held in parts.items() for name, v in held.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.count = int(state["count"])
        for part in ("means", "squares", "deviations", "others"):
            held = {name.removeprefix(f"{part}/"): v for name, v in state.items() if name.startswith(f"{part}/")}
            setattr(self, part, held)

    def _kind(self, model: AdapterModel) -> tuple[Weights, bool]:
        head = type(model.head) is LinearHead and not (model.sites and self.weights is None)
        head = head and self.weights != Weights.SITES and any(p.requires_grad for p in model.head.parameters())
        kind = read_weights(model, self.weights, head)
        if kind is Weights.CORE:
            raise ConfigError("A core stands at I all along training: it has no trajectory. Take weights='factors'.")
        return kind, head

    def _averaged(self, mean: Tensor | None, value: Tensor) -> Tensor:
        return value if mean is None else (self.count * mean + value) / (self.count + 1)


def _is_random(name: str, kind: Weights, head: bool) -> bool:
    """Whether a parameter of the trained model is among the weights that become random."""
    if kind is Weights.SITES:
        return False
    return name.endswith((".lora_A", ".lora_B")) or (head and name.startswith("head."))
