"""Encoders that run side by side and exchange tensors, under gradient checkpointing too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import ForwardPass, running
from bayes_adapters.adapters.recomputation import checkpointed_in, checkpointing
from bayes_adapters.backbones.hidden_states import last_hidden_state
from bayes_adapters.modalities import lockstep
from bayes_adapters.modalities.encoder_inputs import EncoderInputs
from bayes_adapters.modalities.lockstep import Exchange, Tap
from bayes_adapters.sites import Memo


def in_lockstep(
    forward_pass: ForwardPass,
    backbone: nn.Module,
    inputs: EncoderInputs,
    taps: Mapping[str, Sequence[Tap]],
    exchange: Exchange,
) -> dict[str, Float[Tensor, "rows T d"]]:
    """Return the last hidden states of every encoder that has inputs.

    Args:
        forward_pass: the pass that is running; what is checkpointed runs again with what it exchanged.
        backbone: holds the encoders by their names.
        inputs: of the encoders.
        taps: name → where that encoder stops.
        exchange: see :func:`bayes_adapters.modalities.lockstep.run`.
    """
    pauses = lockstep.Pauses()
    forward_pass.again.append(pauses.replayed)
    encoders = {name: backbone.get_submodule(name) for name in inputs.calls}
    # What a guide makes once for all sites, a checkpointed encoder makes for its own: it runs again without others.
    again = [name for name, net in encoders.items() if checkpointed_in(checkpointing(net))]
    within = {name: partial(running, replace(forward_pass, memo=Memo())) for name in again}
    outputs = lockstep.run(encoders, inputs.calls, taps, exchange, pauses=pauses, within=within)
    return {name: last_hidden_state(output, encoders[name]) for name, output in outputs.items()}
