"""Adapters go to a hub and come back: through the hub's own client, over a socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from bayes_adapters import AdapterModel, load_task, predict, save
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.saved import load_calibration
from bayes_adapters.errors import AdapterFileError, ConfigError, MissingResourceError
from bayes_adapters.files._hub_checks import require_source
from bayes_adapters.files.hub import (
    CARD,
    HubMixin,
    download,
    from_pretrained,
    load_from_hub,
    push_to_hub,
    save_pretrained,
)
from bayes_adapters.guides import MeanField
from tests.files.hub_server import Hub, serving
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, as HF_ENDPOINT and HF_HOME would choose it for this process."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving() as (address, hub):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield hub


@dataclass
class Pair(HubMixin):
    model: AdapterModel
    guide: MeanField


def trained() -> tuple[core_model, MeanField]:  # type: ignore[valid-type]
    model = core_model()
    model.backbone.config._name_or_path = "some-lab/tiny-bert"
    return model, MeanField(model)


def test_a_model_goes_to_the_hub_and_comes_back(hub: Hub) -> None:
    model, guide = trained()
    expected = predict(model, guide, token_batch()).probs
    about = {"task": {"labels": ["no", "yes"]}, "calibration": [TemperatureScaling(2.0)]}
    url = push_to_hub(model, "me/adapter", guide=guide, token="hf_secret", **about)
    (oid, files) = hub.commits["me/adapter"]["main"][-1]
    assert url.endswith(f"/me/adapter/commit/{oid}")
    assert set(files) == {"adapter.json", "adapter.safetensors", CARD}
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert not hub.private
    assert torch.equal(predict(*load_from_hub("me/adapter", bert()), token_batch()).probs, expected)
    assert load_task(download("me/adapter"))["labels"] == ["no", "yes"]
    assert load_calibration(download("me/adapter")) == [TemperatureScaling(2.0)]
    assert not [line for line in hub.seen if line.startswith("GET") and CARD in line], "the card is not fetched"


def test_the_card_states_facts(hub: Hub) -> None:
    model, guide = trained()
    push_to_hub(model, "me/adapter", guide=guide)
    text = hub.commits["me/adapter"]["main"][-1][1][CARD].decode()
    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "bayes-adapters"
    assert about["base_model"] == "some-lab/tiny-bert"
    assert "stochastic_core" in about["tags"]
    for fact in ("BertModel", "`mean_field`", "`bernoulli`", "rank=3", "| adapted layers | 4 |", "50", "torch "):
        assert fact in body, fact
    assert 'load_from_hub("me/adapter", backbone)' in body
    folder = bert()
    folder.config._name_or_path = "/home/somebody/models/tiny"
    model = core_model(backbone=folder)
    push_to_hub(model, "me/other", guide=MeanField(model))
    text = hub.commits["me/other"]["main"][-1][1][CARD].decode()
    assert "somebody" not in text, "a folder of one machine is no base model"
    assert "base_model" not in text


def test_a_folder_is_pushed_with_its_own_card(hub: Hub, tmp_path: Path) -> None:
    model, guide = trained()
    save(tmp_path / "adapter", model, guide)
    push_to_hub(tmp_path / "adapter", "me/adapter", private=True, message="first")
    assert hub.private == {"me/adapter"}
    generated = hub.commits["me/adapter"]["main"][-1][1][CARD]
    with torch.no_grad():
        next(iter(model.head.parameters())).add_(1.0)
    save(tmp_path / "adapter", model, guide)
    push_to_hub(str(tmp_path / "adapter"), "me/adapter")
    assert hub.commits["me/adapter"]["main"][-1][1][CARD] == generated, "a card that is there stays"
    (tmp_path / "adapter" / CARD).write_text("mine\n")
    push_to_hub(tmp_path / "adapter", "me/adapter")
    assert hub.commits["me/adapter"]["main"][-1][1][CARD] == b"mine\n"


def test_a_revision_is_that_adapter_for_ever(hub: Hub) -> None:
    model, guide = trained()
    old = predict(model, guide, token_batch()).probs
    first = push_to_hub(model, "me/adapter", guide=guide).rpartition("/")[2]
    with torch.no_grad():
        next(iter(model.head.parameters())).add_(1.0)
    new = predict(model, guide, token_batch()).probs
    push_to_hub(model, "me/adapter", guide=guide, revision="second")
    for revision, expected in ((None, old), (first, old), ("second", new)):
        found = predict(*load_from_hub("me/adapter", bert(), revision=revision), token_batch()).probs
        assert torch.equal(found, expected)


def test_offline_the_cache_answers_and_pushing_is_refused_in_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guide = trained()
    expected = predict(model, guide, token_batch()).probs
    push_to_hub(model, "me/adapter", guide=guide)
    download("me/adapter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = list(hub.seen)
    assert torch.equal(predict(*load_from_hub("me/adapter", bert()), token_batch()).probs, expected)
    with refuses(MissingResourceError, "'me/adapter'", "HF_HUB_OFFLINE=1") as raised:
        push_to_hub(model, "me/adapter", guide=guide)
    with refuses(MissingResourceError, "'me/unknown'", "HF_HUB_OFFLINE") as others:
        load_from_hub("me/unknown", bert())
    assert all("\n" not in str(error) for error in [*raised, *others])
    assert hub.seen == before


def test_what_the_hub_does_not_have_or_allow(hub: Hub, tmp_path: Path) -> None:
    model, guide = trained()
    with refuses(MissingResourceError, "'me/unknown'", "RepositoryNotFoundError") as raised:
        load_from_hub("me/unknown", bert())
    assert "\n" not in str(raised[0])
    push_to_hub(model, "me/adapter", guide=guide)
    with refuses(MissingResourceError, "'me/adapter'", "'v9'"):
        load_from_hub("me/adapter", bert(), revision="v9")
    with refuses(ConfigError, "'no such name!'"):
        load_from_hub("no such name!", bert())
    with refuses(ConfigError, "StochasticCore", "guide="):
        push_to_hub(model, "me/adapter")
    with refuses(ConfigError, str(tmp_path), "guide="):
        push_to_hub(tmp_path, "me/adapter", guide=guide)
    with refuses(ConfigError, str(tmp_path), "calibration="):
        push_to_hub(tmp_path, "me/adapter", calibration=[TemperatureScaling(2.0)])
    with refuses(ConfigError, "a int"):
        require_source(3, AdapterModel, None, None)
    commits = len(hub.commits["me/adapter"]["main"])
    with refuses(AdapterFileError, str(tmp_path)):
        push_to_hub(tmp_path, "me/adapter")
    hub.down = True
    with refuses(MissingResourceError, "'me/adapter'", "closed for today"):
        push_to_hub(model, "me/adapter", guide=guide)
    assert len(hub.commits["me/adapter"]["main"]) == commits


def test_an_altered_or_foreign_repository_is_refused(hub: Hub) -> None:
    model, guide = trained()
    push_to_hub(model, "me/adapter", guide=guide)
    oid, files = hub.commits["me/adapter"]["main"][-1]
    other = json.loads(files["adapter.json"]) | {"num_data": 51}
    hub.commits["me/adapter"]["main"].append(("1" * 40, files | {"adapter.json": json.dumps(other).encode()}))
    with refuses(AdapterFileError, "adapter.json"):
        load_from_hub("me/adapter", bert())
    hub.commits["me/empty"] = {"main": [("2" * 40, {"config.json": b"{}"})]}
    with refuses(AdapterFileError, "'me/empty'", "adapter.json", "from_peft"):
        load_from_hub("me/empty", bert())
    assert load_from_hub("me/adapter", bert(), revision=oid)


def test_offline_the_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, guide = trained()
    expected = predict(model, guide, token_batch()).probs
    with refuses(MissingResourceError, "me/adapter", "HF_HUB_OFFLINE=1", "folder="):
        push_to_hub(model, "me/adapter", guide=guide)
    folder = tmp_path / "adapter"
    assert push_to_hub(model, "me/adapter", guide=guide, folder=folder, task={"labels": ["no", "yes"]}) == str(folder)
    assert 'load_from_hub("me/adapter", backbone)' in (folder / CARD).read_text()
    assert load_task(folder)["labels"] == ["no", "yes"]
    assert torch.equal(predict(*from_pretrained(folder, bert()), token_batch()).probs, expected)
    with refuses(ConfigError, str(folder), "revision"):
        from_pretrained(folder, bert(), revision="main")
    with refuses(ConfigError, str(folder), "folder="):
        push_to_hub(folder, "me/adapter", folder=tmp_path / "b")
    (folder / CARD).write_text("mine")
    save_pretrained(folder, model, guide)
    assert (folder / CARD).read_text() == "mine"


def test_a_mixin_writes_uploads_and_reads(hub: Hub, tmp_path: Path) -> None:
    pair = Pair(*trained())
    pair.push_to_hub("me/adapter", folder=tmp_path / "own")
    (_, files) = hub.commits["me/adapter"]["main"][-1]
    assert set(files) == {"adapter.json", "adapter.safetensors", CARD}
    assert (tmp_path / "own" / CARD).read_bytes() == files[CARD]
    expected = predict(pair.model, pair.guide, token_batch()).probs
    for source in ("me/adapter", tmp_path / "own"):
        again = Pair.from_pretrained(source, bert())
        assert torch.equal(predict(again.model, again.guide, token_batch()).probs, expected)
