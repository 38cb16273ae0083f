"""Two paths a layer and encoders in lock-step: the function, its descriptors and their schedules."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import Batch, adapted_layers, remove
from bayes_adapters.adapters.forward_pass import Descriptor, ForwardPass, running
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.errors import DataError, FoldError
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.modalities.inter_path import InterPath
from bayes_adapters.models import CoLA
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from tests.cola.parts import cola
from tests.helpers import logits
from tests.refusals import refuses
from tests.text_and_audio import batch, encoders


def test_at_the_start_the_encoders_are_the_frozen_ones_and_remove_restores_them() -> None:
    nets, data = encoders(), batch()
    text = nets["text"](input_ids=data.inputs["text.input_ids"], attention_mask=data.inputs["text.attention_mask"])
    model = cola(nets, fill=False)
    guide = Hypernetwork(model, gamma=4)
    found = logits(guide, data)
    with model.adapters_disabled():
        assert torch.equal(found, logits(guide, data))
    remove(nets)
    again = nets["text"](input_ids=data.inputs["text.input_ids"], attention_mask=data.inputs["text.attention_mask"])
    assert torch.equal(text.last_hidden_state, again.last_hidden_state)


def test_the_inter_path_by_hand_and_its_windows() -> None:
    site = Site("cross.l", Part.CROSS, ("l",), (2, 2), Granularity.SEQUENCE, "audio")
    path = InterPath(site, nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(4, 2)), 0.3, "slot")
    ids = torch.zeros(3, 1, dtype=torch.long)
    prior = Prior(zero_normal(1.0), [site])
    x, descriptor = torch.randn(6, 4, 5), torch.randn(3, 7)
    descriptors = {"slot": Descriptor(descriptor)}
    rows = Rows(Batch({"text.input_ids": ids}), windows={"l": "block"})
    state = ForwardPass(rows, prior, {}, 1, descriptors=descriptors)
    import pyro

    with running(state), pyro.poutine.trace() as tracer:
        found = path(x)
    core = tracer.trace.nodes["cross.l"]["value"][:, 0]
    for row in range(6):
        expected = 0.3 * x[row] @ path.lora_A.T @ core[row // 2].T @ path.lora_B.T
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-6)
    again = ForwardPass(state.rows, prior, {}, 1, descriptors=descriptors)
    with running(again), refuses(DataError, "'l'", 5, 3, "exclude=['l']"):
        path(x[:5])
    plain = ForwardPass(Rows(rows.batch), prior, {}, 1, descriptors=descriptors)
    with running(plain), refuses(FoldError, "'l'", 6, "3 examples", "1 samples"):
        path(x)  # nothing says that the layer sees windows


def _streams(model: CoLA, data: Batch) -> dict[str, Tensor]:
    """The tensors that each layer's path saw, by the site's name."""
    guide = Delta(model)
    with torch.no_grad():
        guide(data)
    return {s.name: guide.trace.nodes[s.name]["infer"]["site"].z[:, 0] for s in model.sites}


@pytest.mark.parametrize(("schedule", "groups"), [("uniform", (6,)), ("module", (4, 2)), ("progressive", (3, 1, 2))])
def test_schedules_refresh_the_descriptor_where_they_say(schedule: str, groups: tuple[int, ...]) -> None:
    model, data = cola(schedule=schedule), batch()
    seen = _streams(model, data)
    for name in ("text", "audio"):
        for block in model.blocks[name]:
            values = [seen[f"cross.{name}.{path}"] for path in block.linears]
            distinct = [0]
            for a, b in itertools.pairwise(values):
                distinct.append(distinct[-1] + (not torch.equal(a, b)))
            assert tuple(distinct.count(k) for k in sorted(set(distinct))) == groups


def test_descriptors_are_the_pooled_streams_of_the_other_encoder() -> None:
    """At the first block nothing has been exchanged yet, so the streams are those of the frozen embeddings."""
    nets, data = encoders(), batch()
    mask = data.inputs["text.attention_mask"]
    with torch.no_grad():
        words = nets["text"].embeddings(input_ids=data.inputs["text.input_ids"])
        sounds = nets["audio"](data.inputs["audio.input_features"], output_hidden_states=True).hidden_states[0]
    for kind, text in {
        "masked_mean": (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
        "mean": words.mean(1),
        "cls": words[:, 0],
    }.items():
        model = cola(nets, streams={"text": kind, "audio": "mean"})
        seen = _streams(model, data)
        first = {name: f"cross.{name}.{model.blocks[name][0].query}" for name in nets}
        torch.testing.assert_close(seen[first["audio"]], text, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(seen[first["text"]], sounds.mean(1), rtol=1e-5, atol=1e-6)
        remove(nets)


def test_padding_counts_nowhere() -> None:
    model, data = cola(), batch()
    guide = Hypernetwork(model, gamma=4)
    longer = dict(data.inputs)
    longer["text.input_ids"] = torch.cat([data.inputs["text.input_ids"], torch.full((4, 3), 17)], 1)
    longer["text.attention_mask"] = torch.cat([data.inputs["text.attention_mask"], torch.zeros(4, 3).long()], 1)
    torch.testing.assert_close(
        logits(guide, Batch(longer)), logits(guide, data.without_targets()), rtol=1e-4, atol=1e-5
    )


def test_both_encoders_depend_on_the_other() -> None:
    model, data = cola(), batch()
    guide, other = Hypernetwork(model, gamma=4), batch(seed=9)
    seen = _streams(model, data)
    last = {name: f"cross.{name}.{model.blocks[name][1].fc1}" for name in ("text", "audio")}
    swapped = data.inputs | {"audio.input_features": other.inputs["audio.input_features"]}
    with torch.no_grad():
        found = _streams(model, Batch(swapped))
    assert not torch.allclose(seen[last["text"]], found[last["text"]])
    assert not torch.allclose(seen[last["audio"]], found[last["audio"]]), "through the text encoder and back"
    assert not torch.allclose(logits(guide, data), logits(guide, Batch(swapped)))


def test_shared_matrices_are_one_parameter() -> None:
    layer = next(iter(adapted_layers(cola(share="A").backbone).values()))
    assert layer.inter["audio"].lora_A is layer.lora_A
    assert layer.inter["audio"].lora_B is not layer.lora_B
    both = next(iter(adapted_layers(cola(share="all").backbone).values()))
    assert both.inter["audio"].lora_A is both.lora_A
    assert both.inter["audio"].lora_B is both.lora_B
