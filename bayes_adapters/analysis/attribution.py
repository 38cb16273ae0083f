"""What each modality does to the uncertainty of a prediction: it is withheld, and the entropies are compared.

Let H(S) be an uncertainty of one example, in nats, when the modalities S are given and the others are missing, as the
model defines missing; H is the entropy of the averaged predictive (total), the average entropy of a draw's predictive
(aleatoric), or their difference (epistemic). With P the M modalities in question, and P∖m all of them but m::

    withhold    change_m = H(P) − H(P∖m)
    shapley     change_m = Σ_{S ⊆ P∖m} |S|! (M − |S| − 1)! / M! · [ H(S ∪ {m}) − H(S) ]

Negative: m removes uncertainty. ``withhold`` is what m does on top of all others; ``shapley`` is the average over all
orders in which the modalities could be given one after another, and adds up to ``H(P) − H(∅)``. With one modality they
are the same. The changes of the aleatoric and the epistemic part add up to that of the total.

Every subset is predicted once, with the same posterior draws: no difference is due to other noise, and a modality that
the model does not read has a change of exactly 0.

What it is not: the change of one example may have either sign, for evidence can make a right prediction less sure. H(S)
is what the model says when it lacks something, not what the data leave open then: it means something only for a model
that was trained with examples that lacked the modality. Its mean over examples is minus the information that m carries
about the target only if all H(S) are calibrated.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from math import comb

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bayes_adapters.analysis._attribution_checks import (
    require_any_withholdable,
    require_batches,
    require_few,
    require_names,
    require_subsets,
)
from bayes_adapters.analysis.bootstrap import PairedDifference, paired_bootstrap
from bayes_adapters.analysis.metrics import Decomposition
from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import choice, integer
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import predict


class AttributionMethod(StrEnum):
    """How a modality's change is defined; the module's docstring has the formulas."""

    WITHHOLD = "withhold"
    """Beside all others; M + 1 predictions."""
    SHAPLEY = "shapley"
    """The average over all subsets of the others; 2^M predictions, M ≤ 7."""


@dataclass(frozen=True)
class Attribution:
    """What each of M modalities does to the uncertainty of N examples; everything is float64, on the CPU.

    Args:
        method: see :class:`AttributionMethod`.
        changes: modality → change of total, aleatoric and epistemic uncertainty, each of shape (N,), for tagging (N, T)
            and zero at padding, for masks (N, H, W), for several numbers (N, K), nats; negative where the modality
            removes uncertainty. An example that lacks it has the change 0, and counts in the mean.
        uncertainty: the modalities given → the uncertainty then, of the same shapes, nats, for each subset predicted.
            Modalities that were not asked about are given in all of them.
        index: shape (N,), int64: the examples' numbers in their data set.
    """

    method: AttributionMethod
    changes: Mapping[str, Decomposition]
    uncertainty: Mapping[frozenset[str], Decomposition]
    index: Int[Tensor, " N"]

    @property
    def modalities(self) -> list[str]:
        """The M modalities."""
        return list(self.changes)

    def means(
        self, *, groups: Tensor | Sequence[Hashable] | None = None, draws: int = 2000, seed: int = 0
    ) -> dict[str, dict[str, PairedDifference]]:
        """Return the mean change over all examples with a 95 % interval from resampling examples.

        An example's change is the sum over its tokens, pixels or numbers, where it has several.

        Args:
            groups: shape (N,): examples of one group are resampled together, see :func:`paired_bootstrap`.
            draws: number of resamples.
            seed: of the resampling.

        Returns:
            modality → ``"total"``, ``"aleatoric"``, ``"epistemic"`` → (mean, low, high), nats.

        Raises:
            DataError: fewer than two examples or groups, or ``groups`` of another length.
        """

        def mean(value: Tensor) -> PairedDifference:
            value = value.flatten(1).sum(-1) if value.dim() > 1 else value
            return paired_bootstrap(torch.mean, value, torch.zeros_like(value), groups=groups, draws=draws, seed=seed)

        return {
            name: {part: mean(value) for part, value in change._asdict().items()}
            for name, change in self.changes.items()
        }

    def __getitem__(self, rows: slice | Bool[Tensor, " N"] | Int[Tensor, " n"]) -> Attribution:
        """Return the examples at ``rows``: a slice, row numbers or a bool mask."""
        return Attribution(
            self.method,
            {name: _rows(change, rows) for name, change in self.changes.items()},
            {given: _rows(value, rows) for given, value in self.uncertainty.items()},
            self.index[rows],
        )


def attribute(
    model: AdapterModel,
    guide: AdapterGuide,
    data: Batch | Iterable[Batch],
    *,
    modalities: Sequence[str] | None = None,
    num_samples: int = 16,
    chunk_size: int | None = None,
    method: AttributionMethod | str = AttributionMethod.WITHHOLD,
    task: str | None = None,
    seed: int = 0,
) -> Attribution:
    """Attribute total, aleatoric and epistemic uncertainty to modalities; see the module's docstring for the formulas.

    What is missing is defined by the model (``model.withhold``): context is masked, so a guide's or a model's null
    context stands in; an encoder of CoLA is replaced by its null vectors. A backbone's own inputs cannot be withheld.

    Args:
        model: the model.
        guide: the guide made for it.
        data: one batch, or batches of one data set in order, all held in memory; targets are not looked at,
            but for the lists of :class:`bayes_adapters.likelihoods.Candidates`.
        modalities: what is attributed to; the others are always given. None means all that can be withheld.
        num_samples: S, posterior draws; the same ones for every subset.
        chunk_size: draws per backbone pass, as in :func:`bayes_adapters.predict`.
        method: see :class:`AttributionMethod`.
        task: of :class:`bayes_adapters.likelihoods.Tasks`, the one whose uncertainty is attributed; None takes the sum.
        seed: of the draws.

    Returns:
        An :class:`Attribution`; its ``means()`` have intervals.

    Raises:
        ConfigError: ``seed`` is no integer, nothing can be withheld, a name that no batch has or that is given twice,
            more than 7 modalities for ``"shapley"``, an unknown task, or what ``predict`` refuses.
        DataError: no batch, or a guide that was built with null_context=False.

    >>> _ = torch.manual_seed(0)
    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Categorical, Frames
    >>> from bayes_adapters.systems import build
    >>> model, guide = build("caliber-x", BertModel(tiny), Categorical(2), context_dim=4, rank=2)
    >>> frames = Frames(torch.randn(3, 5, 4), torch.ones(3, 5, dtype=torch.bool))
    >>> data = Batch({"input_ids": torch.randint(20, (3, 6))}, context={"audio": frames})
    >>> attribution = attribute(model, guide, data, num_samples=4)
    >>> attribution.changes["audio"].epistemic.shape  # nats: what knowing the audio changes, per example
    torch.Size([3])
    >>> sorted(attribution.means()["audio"])
    ['aleatoric', 'epistemic', 'total']
    """
    how = choice(AttributionMethod, "method", method)
    seed = integer("seed", seed)  # predict's None is other noise in every call, and the differences would be that noise
    batches = [data] if isinstance(data, Batch) else list(data)
    require_batches(batches)
    names = _names(model, batches, modalities, how)
    players = frozenset(names)
    if how is AttributionMethod.SHAPLEY:
        subsets = [frozenset(some) for size in range(len(names) + 1) for some in combinations(names, size)]
    else:
        subsets = [players - {name} for name in names] + [players]
    found: dict[frozenset[str], Decomposition] = {}
    for given in subsets:
        withheld = [_without(model, batch, players - given) for batch in batches]
        prediction = predict(model, guide, withheld, num_samples=num_samples, chunk_size=chunk_size, seed=seed)
        prediction = prediction if task is None else prediction[task]
        parts = (prediction.total, prediction.aleatoric, prediction.epistemic)
        found[given] = Decomposition(*(part.cpu().double() for part in parts))
    if how is AttributionMethod.SHAPLEY:
        by_part = [shapley({given: value[part] for given, value in found.items()}) for part in range(3)]
        changes = {name: Decomposition(*(values[name] for values in by_part)) for name in names}
    else:
        changes = {
            name: Decomposition(*(a - b for a, b in zip(found[players], found[players - {name}], strict=True)))
            for name in names
        }
    return Attribution(how, changes, found, _numbers(batches))


def shapley(values: Mapping[frozenset[str], Tensor]) -> dict[str, Tensor]:
    """Return each player's Shapley value, ``Σ_S |S|! (M − |S| − 1)! / M! · [v(S ∪ {m}) − v(S)]`` over S without m.

    Source: Shapley (1953), A value for n-person games.

    Args:
        values: every subset of the M players → v, shape (…), all of one shape.

    Returns:
        player → shape (…), float64; they add up to v(all) − v(none).

    Raises:
        ConfigError: a subset is missing.

    >>> value = {frozenset(s): torch.tensor(v) for s, v in {"": 1.0, "a": 1.0, "b": 1.0, "ab": 0.0}.items()}
    >>> {name: v.item() for name, v in shapley(value).items()}  # neither helps alone, both together tell all
    {'a': -0.5, 'b': -0.5}
    """
    players = list(dict.fromkeys(name for given in sorted(values, key=len) for name in sorted(given)))
    require_subsets(len(players), len(values))
    result: dict[str, Tensor] = {}
    for player in players:
        others = [given for given in values if player not in given]
        result[player] = sum(
            (
                (values[given | {player}].double() - values[given].double())
                / (len(players) * comb(len(players) - 1, len(given)))
                for given in others
            ),
            start=torch.zeros((), dtype=torch.float64),
        )
    return result


def _names(
    model: AdapterModel, batches: Sequence[Batch], modalities: Sequence[str] | None, how: AttributionMethod
) -> list[str]:
    """The modalities in question, all of them known."""
    allowed = list(dict.fromkeys(name for batch in batches for name in model.withholdable(batch)))
    require_any_withholdable(model, allowed)
    names = allowed if modalities is None else list(modalities)
    require_names(modalities, names, allowed)
    if how is AttributionMethod.SHAPLEY:
        require_few(names)
    return names


def _without(model: AdapterModel, batch: Batch, names: frozenset[str]) -> Batch:
    here = [name for name in model.withholdable(batch) if name in names]
    return model.withhold(replace(batch, targets=model.likelihood.without_answers(batch.targets)), *here)


def _numbers(batches: Sequence[Batch]) -> Int[Tensor, " N"]:
    """Each example's number, as ``predict`` numbers them."""
    numbers: list[Tensor] = []
    offset = 0
    for batch in batches:
        numbers.append((batch.ids + offset if batch.index is None else batch.ids).cpu())
        offset += batch.size
    return torch.cat(numbers)


def _rows(value: Decomposition, rows: slice | Tensor) -> Decomposition:
    return Decomposition(*(part[rows] for part in value))
