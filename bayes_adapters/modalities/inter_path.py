"""The inter-modal path of an adapted layer: a low-rank update whose core another modality decides (CoLA)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.adapters.forward_pass import current_pass
from bayes_adapters.errors import ConfigError
from bayes_adapters.sites import Site


class InterPath(nn.Module):
    """``δ = λ · B_C Φ A_C x``, Φ a sample site that sees the other modality's descriptor x̄.

    A_C may be the layer's own A (and B_C its B): then the tensor is shared and trained by both paths. λ is a learnable
    scalar. At B_C = 0 the path adds exactly nothing.

    Source: Suharitdamrong et al. 2026, CoLA, arXiv 2604.03314, and its released code.

    Args:
        site: Φ's site; ``site.source`` names the modality that conditions it.
        lora_A: A_C, shape (r_C, d_in).
        lora_B: B_C, shape (d_out, r_C).
        gain: λ's initial value.
        slot: the key of the path's descriptor among those of the forward pass.
    """

    def __init__(self, site: Site, lora_A: nn.Parameter, lora_B: nn.Parameter, gain: float, slot: str) -> None:
        super().__init__()
        self.site, self.slot = site, slot
        self.lora_A, self.lora_B = lora_A, lora_B
        self.gain = nn.Parameter(torch.tensor([float(gain)], device=lora_A.device))

    def forward(self, x: Float[Tensor, "windows *T d_in"]) -> Float[Tensor, "windows *T d_out"]:
        """Return δ; a backbone that cuts each example into windows has their rows in the order [example, window].

        Raises:
            ConfigError: the layer runs outside its model.
            DataError: the rows are not those of the examples, nor of their windows in a block known to have any.
        """
        forward_pass = current_pass()
        descriptor = None if forward_pass is None else forward_pass.descriptors.get(self.slot)
        if forward_pass is None or descriptor is None:
            raise ConfigError(
                f"The layer {self.site.layers[0]!r} has a path from {self.site.source!r} and runs without its "
                "descriptor. Call the model, the guide or predict(), which run all encoders in lock-step; for the "
                "frozen encoders alone use `with model.adapters_disabled():`."
            )
        forward_pass.rows.by_example(self.site.layers[0], x)  # or it refuses
        rows, condition = descriptor.value.shape[0], descriptor.value[:, None]
        core = forward_pass.draw(self.site, condition, tokens=False, present=descriptor.present)[:, 0]
        z = F.linear(x.to(self.lora_A.dtype), self.lora_A)
        flat = z.reshape(rows, -1, z.shape[-1])  # the windows of an example share its Φ
        z = torch.matmul(flat, core.to(z.dtype).mT).reshape(z.shape)
        return self.gain * F.linear(z, self.lora_B)

    def extra_repr(self) -> str:
        """Show what the path connects."""
        return f"from {self.site.source}, rank={self.lora_A.shape[0]}"
