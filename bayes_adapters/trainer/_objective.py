"""What the Trainer trains and writes: the ELBO, and of its weights those that are trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayes_adapters.data.batch import Batch
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.training._optimizer import trainable


class Objective(nn.Module):
    """The negative ELBO as a Trainer calls it; its ``state_dict`` is the adapter and the guide alone.

    Args:
        elbo: of the model and its guide.
    """

    accepts_loss_kwargs = True
    """The loss is weighed by the examples of the whole step, and not to be divided by the number of micro-batches."""

    def __init__(self, elbo: ELBO) -> None:
        super().__init__()
        self.elbo = elbo
        self.register_state_dict_post_hook(_without_base)
        self.register_load_state_dict_post_hook(_base_stays)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return loss, nll and kl, scalars in nats per datum, at optimiser step ``step``."""
        terms = self.elbo.terms(batch, step)
        return {"loss": terms.loss, "nll": terms.nll, "kl": terms.kl}

    def own(self) -> set[str]:
        """Names of what a run changes: parameters, and buffers outside the frozen backbone."""
        trained = {f"elbo.{name}" for name in trainable(self.elbo.model, self.elbo.guide)}
        frozen = ("elbo.model.backbone.", "elbo.model.prior.")
        return trained | {name for name, _ in self.named_buffers() if not name.startswith(frozen)}


def _without_base(module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Take what is frozen out of a ``state_dict``."""
    own = module.own()
    for name in [name for name in state if name.startswith(prefix) and name.removeprefix(prefix) not in own]:
        del state[name]


def _base_stays(module: Any, found: Any) -> None:
    """Miss nothing of what is frozen, and everything that is trained.

    Raises:
        ConfigError: a checkpoint of another model or guide.
    """
    own = module.own()
    lacking = [name for name in found.missing_keys if name in own]
    if lacking or found.unexpected_keys:
        raise ConfigError(
            f"The checkpoint is of another model or guide: it lacks {lacking[:3]} and has {found.unexpected_keys[:3]}, "
            "which are not trained here. Resume with the model and guide that were trained, or in another output_dir."
        )
    found.missing_keys.clear()
