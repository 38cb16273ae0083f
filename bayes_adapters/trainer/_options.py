"""Options of the ELBO in a Trainer, completed by the recipe of the guide's system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.trainer import _checks
from bayes_adapters.training._settings import OWN, RecipeLike


@dataclass(frozen=True)
class Options:
    """See :class:`bayes_adapters.trainer.BayesTrainer`; None is a recipe's, or the default."""

    kl_weight: float | KLSchedule | Callable[[int], float] | None
    kl_mode: KLMode | str | None
    num_particles: int
    num_samples: int | None
    recipe: RecipeLike | str | None

    def resolved(self, model: Any, guide: Any, args: Any, examples: int | None) -> Any:
        """Return the options for a model, without None.

        Args:
            model: what is trained.
            guide: made for it.
            args: ``TrainingArguments``.
            examples: of the training set; without it there is no recipe.

        Raises:
            ConfigError: the recipe prunes.
        """
        require_pair(model, guide)
        recipe: Any = getattr(guide, "recipe", None) if self.recipe == OWN else self.recipe
        found: dict[str, Any] = {"kl_weight": 1.0, "kl_mode": KLMode.FULL, "num_samples": 8}
        if recipe is not None and examples:
            size = min(args.train_batch_size * args.world_size * args.gradient_accumulation_steps, examples)
            steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * -(-examples // size))
            taken = recipe.fit_options(model, guide, num_data=examples, batch_size=size, max_steps=steps)
            if taken.get("on_step") is not None and self.kl_weight is None:
                raise _checks.no_pruning()
            if self.kl_weight is not None:  # a mode is that of a weight
                taken.pop("kl_mode", None)
            found |= {name: taken[name] for name in found if taken.get(name) is not None}
        chosen = {name: getattr(self, name) for name in found}
        return replace(self, **{name: found[name] if value is None else value for name, value in chosen.items()})
