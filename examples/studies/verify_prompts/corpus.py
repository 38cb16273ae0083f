"""Everything the experiments read: prompts, splits, cached frames, tokens; and batches sorted by length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bayes_adapters import Frames
from bayes_adapters.backbones import SpeechEncoder, speech_encoder, text_backbone
from bayes_adapters.errors import ConfigError
from bayes_adapters.reliability import FrameDensity
from examples.studies import length_batches
from examples.studies.verify_prompts.dataset import MISSING, PairDataset
from examples.studies.verify_prompts.features import FrameStore
from examples.studies.verify_prompts.pairs import Pair, make_pairs
from examples.studies.verify_prompts.prompts import LANGUAGES, Prompt, Splits, load_prompts, make_splits

FOREIGN = tuple(language for language in LANGUAGES if language != "en")


@dataclass(frozen=True)
class Corpus:
    """Prompts of all languages, their splits, and one frame store a split: what is not asked for is not encoded.

    Args:
        prompts: of every language.
        splits: keys of the English prompts.
        stores: split name → its frames.
        tokenizer: of the text backbone.
        speech: for methods that adapt the speech encoder: that encoder. The stores then hold mel features, backbones
            have two encoders, and batches hold the inputs of both; see :mod:`examples.studies.verify_prompts.heard`.
    """

    prompts: Sequence[Prompt]
    splits: Splits
    stores: Mapping[str, FrameStore]
    tokenizer: Any
    speech: SpeechEncoder | None = None

    @classmethod
    def load(cls, *, split_seed: int = 0, languages: Sequence[str] = LANGUAGES) -> Corpus:
        """Fetch what is not on disk yet, and split the English prompts by ``split_seed``."""
        prompts = load_prompts(tuple(languages))
        splits = make_splits(prompts, split_seed)
        encoder: SpeechEncoder = speech_encoder()
        _, tokenizer = text_backbone()
        stores = {}
        for name in ("train", "validation", "test"):
            keys = set(getattr(splits, name))
            own = [p for p in prompts if p.key in keys and (p.language == "en" or name == "test")]
            stores[name] = FrameStore(own, splits, encoder=encoder)
        return cls(prompts, splits, stores, tokenizer)

    def heard(self) -> Corpus:
        """The same pairs for methods that adapt the speech encoder.

        Raises:
            ConfigError: the stores were made by an encoder that has no mel features.
        """
        from examples.studies.verify_prompts.heard import MelEncoder

        if self.speech is not None:
            return self
        speech = self.stores["train"].encoder
        if not isinstance(speech, SpeechEncoder):
            raise ConfigError(f"A {type(speech).__name__} has no mel features; make the stores with speech_encoder().")
        mel = MelEncoder(speech)
        stores = {name: store.with_encoder(mel, pool=1) for name, store in self.stores.items()}
        return replace(self, stores=stores, speech=speech)

    @property
    def frame_width(self) -> int:
        """d_a."""
        return self.stores["train"].width

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of the models on :meth:`backbone`, where they are not the usual."""
        return {}

    def backbone(self) -> nn.Module:
        """Return fresh copies of the frozen encoders, without dropout: the only noise in training is the cores'."""
        model, _ = text_backbone()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if self.speech is None:
            return model
        from examples.studies.verify_prompts.heard import WindowedWhisper

        return nn.ModuleDict({"text": model, "audio": WindowedWhisper.of(self.speech)})

    def parts(self, mix: Collection[str], conditions: Collection[str]) -> list[tuple[FrameStore, str, str]]:
        """List the frames that training under ``mix`` and measuring ``conditions`` read: (store, language, condition).

        Validation pairs are read clean as well, for the thresholds of ``verify``.
        """
        heard = [condition for condition in mix if condition != MISSING]
        train, validation, test = (self.stores[name] for name in ("train", "validation", "test"))
        found = [(store, "en", c) for store in (train, validation) for c in heard]
        found += [(validation, "en", "clean"), (test, "en", "clean")]
        for condition in conditions:
            if condition.startswith("ood-"):
                found.append((test, condition.removeprefix("ood-"), "clean"))
            elif condition not in (MISSING, "hard"):
                found.append((test, "en", condition))
        return list(dict.fromkeys(found))

    def pairs(self, split: str, kind: str, language: str = "en") -> list[Pair]:
        """Pairs of a split; wrong scripts of validation and test do not depend on the training seed."""
        pairs = make_pairs(self.prompts, getattr(self.splits, split), kind, seed=0)
        return [pair for pair in pairs if pair.language == language]

    def evaluation(self, split: str, condition: str) -> PairDataset:
        """The data set of one condition: a corruption, ``hard``, ``missing`` or ``ood-<language>``."""
        if condition.startswith("ood-"):
            pairs, mix = self.pairs(split, "foreign", condition.removeprefix("ood-")), {"clean": 1.0}
        elif condition == "hard":
            pairs, mix = self.pairs(split, "hard"), {"clean": 1.0}
        else:
            pairs, mix = self.pairs(split, "random"), {condition: 1.0}
        return self._dataset()(pairs, self.stores[split], self.tokenizer, conditions=mix)

    def training(self, mix: Mapping[str, float], *, seed: int, hard: float = 0.0) -> PairDataset:
        """The training set: every epoch draws new wrong scripts and new corruptions."""
        pairs = self.pairs("train", "random")
        store = self.stores["train"]
        return self._dataset()(pairs, store, self.tokenizer, conditions=mix, fresh=True, hard=hard, seed=seed)

    def _dataset(self) -> type[PairDataset]:
        if self.speech is None:
            return PairDataset
        from examples.studies.verify_prompts.heard import HeardPairs

        return HeardPairs

    def density(self, mix: Mapping[str, float], quantile: float, *, moments: bool = False) -> FrameDensity:
        """Fit the density of the training frames, one Gaussian for each condition in ``mix``, limits on validation.

        The published rows were measured before a density had a lower limit, or ``moments``.
        """
        conditions = [condition for condition in mix if condition != MISSING]
        train, validation = self.stores["train"], self.stores["validation"]
        groups = [torch.cat([train.get("en", c, key) for key in self.splits.train]) for c in conditions]
        held_out = [_frames([validation.get("en", c, key) for key in self.splits.validation]) for c in conditions]
        sides = {"moments": True} if moments else {"two_sided": False}
        return FrameDensity.fit(groups, held_out, quantile=quantile, **sides)


def _frames(recordings: Sequence[torch.Tensor]) -> Frames:
    values = torch.nn.utils.rnn.pad_sequence(list(recordings), batch_first=True)
    lengths = torch.tensor([len(r) for r in recordings])
    return Frames(values, torch.arange(values.shape[1]) < lengths[:, None])


class PairBatches(length_batches.LengthBatches[PairDataset]):
    """Batches of scripts of similar length.

    Where recordings are encoded in windows (:class:`examples.studies.verify_prompts.heard.HeardPairs`), a batch of an
    evaluation has one window, so that a prediction does not depend on the batch.
    """

    def __init__(self, dataset: PairDataset, batch_size: int, *, shuffle: bool, seed: int = 0) -> None:
        keys: dict[str, Any] = {"length": dataset.length, "window": dataset.window}
        super().__init__(dataset, batch_size, **keys, shuffle=shuffle, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, the wrong scripts and the corruptions."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be continued; see :func:`bayes_adapters.training.fit`."""
        own = {"batch_size": self.batch_size, "shuffle": self.shuffle, "seed": self.seed}
        return own | {"dataset": self.dataset.identity()}
