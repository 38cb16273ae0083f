"""Signals are standardised within each person, without labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from bayes_adapters.errors import DataError
from examples.studies.body_signals.data import CLIP, MODALITIES, Signals
from tests.refusals import refuses
from tests.studies.body_signals.parts import PEOPLE


def test_standardised_within_each_person_without_labels(signals: Signals) -> None:
    out = signals.standardised()
    for person in range(2, 2 + PEOPLE):
        own = out.values["ACC"][out.people == person].double()
        assert torch.allclose(own.mean((0, 1)), torch.zeros(3, dtype=torch.float64), atol=1e-5)
        assert torch.allclose(own.std((0, 1), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-4)
    other = replace(signals, labels=1 - signals.labels).standardised()
    assert all(torch.equal(other.values[name], out.values[name]) for name in MODALITIES)
    moved = {k: torch.where((signals.people == 4)[:, None, None], 3 * v + 1, v) for k, v in signals.values.items()}
    again = replace(signals, values=moved).standardised()
    for name in MODALITIES:  # a person's unit and offset do not matter, to them or to others
        assert torch.allclose(again.values[name], out.values[name], atol=1e-3)


def test_outliers_are_limited(signals: Signals) -> None:
    spiked = {k: v.clone() for k, v in signals.values.items()}
    spiked["BVP"][0, 0] = 1e6
    assert replace(signals, values=spiked).standardised().values["BVP"].max() == CLIP


def test_a_dead_sensor_is_refused(signals: Signals) -> None:
    dead = dict(signals.values)
    dead["TEMP"] = torch.where((signals.people == 5)[:, None, None], 31.3, dead["TEMP"])
    with refuses(DataError, "TEMP", "person 5", "12 windows"):
        replace(signals, values=dead).standardised()
