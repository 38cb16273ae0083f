"""The Pyro model that every published structure is a case of: frozen backbone, adapters, head, prior, likelihood.

Density, for a batch of B examples of a data set of N: Pyro's usual estimate of the log-joint of all N::

    log p(τ)  +  log p(E_global | τ)  +  (N/B) Σ_b [ log p(y_b | x_b, E)  +  Σ_layers Σ_tokens log p(E_local | τ) ]

A weight-space core, a head's random weight and a hyper-parameter τ of a prior have one prior factor per data set, a
local core one per example; padding has none. N is ``num_data``, or B where the data set's size is not known. MCMC,
importance weights and Pyro's guides and ELBOs see this density; :class:`bayes_adapters.ELBO` divides it by N: its unit
is nats per datum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, cast

import pyro
import torch
from jaxtyping import Bool, Float
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.adapters.forward_pass import ForwardPass, draw_weights, outer_shape, running
from bayes_adapters.adapters.recomputation import recomputable
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.backbones.hidden_states import heard
from bayes_adapters.conditions import first_look, read_together
from bayes_adapters.data.batch import TOKEN_MASK, Batch
from bayes_adapters.data.rows import Folded, fold
from bayes_adapters.distributions import TokenLogits
from bayes_adapters.heads import BackboneOutput, Head
from bayes_adapters.heads._checks import require_head
from bayes_adapters.inference import _checks
from bayes_adapters.inference._pyro import register_if_captured
from bayes_adapters.inference.adapted import AdaptedBackbone
from bayes_adapters.likelihoods.gaussian_outputs import GaussianOutputs, numbers_of, point_of
from bayes_adapters.sites import Memo, asked

EXPECTED = "expected_log_density"
"""The key of a head's E_q log p(y | f) in the ``infer`` dictionary of the site ``obs``: see ``Head.expectation``."""


class AdapterModel(AdaptedBackbone):
    """A frozen backbone with low-rank adapters, a head and a likelihood, as a Pyro model: ``model(batch)``.

    Sample sites: the random parts (:class:`bayes_adapters.sites.Site`) and ``obs`` (the targets). The backbone is a
    plain module; Pyro never sees its parameters. A structure is a subclass that says what is random, and its prior.

    Args:
        backbone: a Hugging Face model that returns ``last_hidden_state`` (rows, T, d) and whose config names its width.
            It is frozen and changed in place; ``remove(backbone)`` takes the adapters out and leaves it frozen.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        targets: the layers to adapt: suffixes, ``"all-linear"``, a regular expression or :class:`Targets`; None adapts
            none, for structures that do something else.
        rank: r.
        alpha: the scale is ``alpha / rank``.
        ranks: path of an adapted layer → ranks that pruning has left there, 0 … r; the scale stays ``alpha / rank``.
        dropout: dropout probability on the adapters' input while training.
        parts: which tensors of the adapters are random.
        granularity: for what one draw is shared; needed if anything is random.
        prior: prior of the random parts, see :mod:`bayes_adapters.priors`; None means N(0, 0.2²).
        pooling: of the default head, a :class:`~bayes_adapters.heads.LinearHead`: how hidden states become one vector
            per example; None is the mean, or none at all where the likelihood has one target per token.
        head: another head than the structure's own, see :mod:`bayes_adapters.heads`; its parameters are made here.
        num_data: N, the size of the data set; needed by global parts and by priors with hyper-parameters.
        grouped: one sample site for all layers where a global part has one shape, rather than one per layer.
        flipout: see :class:`~bayes_adapters.adapters.reparametrisation.Flipout`; for a random A.

    Raises:
        TargetError: the targets match nothing.
        ConfigError: an option is unknown or does not fit the others.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli
    >>> from bayes_adapters.sites import Part
    >>> net = BertModel(BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    >>> class RandomCores(AdapterModel):
    ...     structure = "random_cores"
    ...     def __init__(self, backbone, likelihood, **options):
    ...         super().__init__(backbone, likelihood, parts=[Part.CORE], granularity="token", **options)
    >>> model = RandomCores(net, Bernoulli(), rank=2)
    >>> model(Batch({"input_ids": torch.randint(50, (3, 5))}, targets=torch.ones(3))).shape
    torch.Size([3, 1])
    """

    structure: ClassVar[str] = "adapter_model"

    def outputs(self, features: Any, batch: Batch) -> Float[Tensor, "rows *T K"] | GaussianOutputs | TokenLogits:
        """Map features to the likelihood's outputs; structures that fuse modalities late override this."""
        return self.head(features)

    def forward(self, batch: Batch) -> Float[Tensor, "*S K"] | TokenLogits:
        """Run the generative process: draw cores, run the backbone once, score or draw ``obs``.

        Args:
            batch: targets may be None; ``obs`` is then drawn.

        Returns:
            The likelihood's parameters, shape (*S, B, K), or (*S, B, T, K) with one target per token, ``*S`` being the
            sizes of sample plates around the model; their means where a head tells moments rather than draws; for a
            vocabulary :class:`bayes_adapters.distributions.TokenLogits`, whose ``logits()`` makes them.

        Raises:
            DataError: targets outside the likelihood's support; another number of tokens in them, or in the mask, than
                the backbone returns; token ids that it cannot embed; a part of the batch on another device.
            NonFiniteError: NaN or infinity in the inputs or the context; with gradients in a distribution's parameters,
                without in the outputs.
        """
        _checks.require_batch(batch)
        self.require_installed()
        require_head(self.head, Head, None)
        if first_look(batch):
            with read_together():
                _checks.check_batch(batch, self.backbone, next(self.parameters()).device)
                self._traits.check(self.backbone, batch.inputs)
                self.accept(batch)
        register_if_captured("model", self)
        outer = outer_shape()
        rows = Rows(batch, outer, self._traits.windows, self._traits.both_layouts, self.rows_per_example)
        # Signs per example are noise of training: a layer in eval mode sees one draw.
        flipped = {layer.path for layer in self._installed if self.flipout and layer.training}
        # A diverged loop of the caller's own ends here; prediction says itself what is wrong, of the guide too.
        with _checks.named_non_finite(self) if torch.is_grad_enabled() else nullcontext():
            prior = self.prior.sampled(outer, next(self.parameters()).device)
            noise = Memo()
            weights = draw_weights(self.sites, prior, rows, flipped, noise)
            weights |= draw_weights(self.head_sites, self.head_prior, rows, noise=noise)
            again = [self._traits.again]
            forward_pass = ForwardPass(rows, prior, weights, len(self.sites), noise=noise, asked=asked(), again=again)
            with pyro.plate("data", batch.size, dim=-1), poutine.scale(scale=self.data_size(batch) / batch.size):
                with self._run(forward_pass):
                    outputs = self.outputs(self._features(batch, rows.samples), batch)
                    expected = None if batch.targets is None else self.head.expectation(self.likelihood, batch.targets)
                with read_together():
                    if not torch.is_grad_enabled():  # in training the loss shows it, for which the host waits anyway
                        _checks.require_finite(self, "The head's outputs are", numbers_of(outputs), batch.size)
                    outputs = outputs.reshape(*outer, batch.size, *outputs.shape[1:])
                    fn, targets = self.likelihood_of(outputs, batch), batch.targets
                infer: Any = {} if expected is None else {EXPECTED: expected}
                obs = None if targets is None else self.likelihood.observation(fn, targets)
                pyro.sample("obs", fn, obs=obs, infer=infer)
        return point_of(outputs)

    @contextmanager
    def _run(self, forward_pass: ForwardPass) -> Iterator[None]:
        """Within the context the backbone runs in ``forward_pass``; so do, later, the blocks that run again for it."""
        again = recomputable(self._checkpointing, self._installed)
        with running(forward_pass), again, self._traits.around(self.backbone, forward_pass.tokens):
            yield

    def _features(self, batch: Batch, samples: int) -> Float[Tensor, "rows *T d"] | TokenLogits:
        if self.runs_each_sample or samples == 1:
            return self.encode(batch, samples)
        features = self.encode(batch, 1)
        if isinstance(features, TokenLogits):  # its head draws nothing of its own
            return features
        return features.repeat(samples, *[1] * (features.dim() - 1))

    def accept(self, batch: Batch) -> None:
        """Raise :class:`DataError` unless likelihood and head can take targets and inputs of ``batch``."""
        if batch.targets is not None:
            self.likelihood.accept(batch.targets)
        require_head(self.head, Head, None).accept(batch)

    def likelihood_of(
        self, outputs: Float[Tensor, "*S K"] | GaussianOutputs | TokenLogits, batch: Batch
    ) -> TorchDistributionMixin:
        """Return p(y | outputs) for the examples of ``batch``, whose padding it leaves out: batch shape (*S, B)."""
        if isinstance(outputs, GaussianOutputs):
            return self.likelihood.expected(outputs)
        if not self.likelihood.per_token:
            return self.likelihood.distribution(cast("Tensor", outputs))
        mask = self.output_mask(batch, outputs.shape[-2])
        _checks.require_tokens_kept(mask, batch.targets, outputs.shape[-2])
        return self.likelihood.of_tokens(cast("Tensor", outputs), mask)

    def output_mask(self, batch: Batch, outputs: int) -> Bool[Tensor, "B T"] | None:
        """Return which of an example's outputs are real, where there is one per token; None where all are.

        Args:
            batch: its examples.
            outputs: T.
        """
        return batch.token_mask

    def encode(self, batch: Batch, folds: int) -> Float[Tensor, "rows *T d"] | TokenLogits:
        """Run the adapted backbone on every example ``folds`` times, in the order [S, B]; return what the head sees."""
        inputs = {k: v for k, v in batch.inputs.items() if k not in (TOKEN_MASK, *self.head.own_inputs)}
        asked = self.head.asks(self.backbone, batch)
        with heard(self.backbone, self.head.listens(self.backbone)) as said:
            output = self._traits.run(self.backbone, inputs, folds, asked)
        mask = None if batch.token_mask is None else fold(batch.token_mask, folds)
        own = {name: fold(batch.inputs[name], folds) for name in self.head.own_inputs if name in batch.inputs}
        return self.head.read(BackboneOutput(output, self.backbone, mask, Folded(inputs, folds), asked, own, said))

    @property
    def runs_each_sample(self) -> bool:
        """Whether each of S samples runs through the backbone: not where they differ in the head's weights only.

        A structure that draws something of its own in :meth:`encode` returns True.
        """
        return bool(self.sites) or not self.head_sites

    @property
    def rows_per_example(self) -> int:
        """How many rows an example has in the backbone: more than one where its segments run on their own."""
        return 1

    def measures(self, draws: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what ``fit`` logs of draws of the adapters' sites at every ``log_every`` steps; nothing by default.

        Args:
            draws: site → values, shape (*plates, *site.shape) or one that broadcasts to it.
        """
        return {}

    def data_size(self, batch: Batch) -> int:
        """Return N, the examples that the density counts: ``num_data``, or those of the batch where it is not known."""
        return batch.size if self.num_data is None else self.num_data

    @property
    def reads(self) -> frozenset[str]:
        """Keys of ``Batch.context`` that the model itself looks at."""
        return frozenset()

    def withholdable(self, batch: Batch) -> list[str]:
        """Name the modalities of ``batch`` that :meth:`withhold` can take away: those of its context.

        The backbone's own inputs are none of them: without its text there is nothing to run.
        """
        return list(batch.context)

    def withhold(self, batch: Batch, *modalities: str) -> Batch:
        """Return ``batch`` as it is for examples that lack ``modalities``: all of their frames are masked.

        They are masked, not left out: a name that is not there is taken for misspelled.

        Raises:
            ConfigError: a name is none of :meth:`withholdable`.
        """
        _checks.require_withholdable(modalities, self.withholdable(batch))
        return batch.masked(*modalities)
