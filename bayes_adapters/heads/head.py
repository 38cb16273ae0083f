"""What a head is: the trainable map from what the backbone returns to the numbers that the likelihood takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.adapters.forward_pass import ForwardPass, current_pass
from bayes_adapters.adapters.reparametrisation import Weight
from bayes_adapters.backbones._checks import require_no_task_head
from bayes_adapters.backbones.hidden_states import last_hidden_state, pooler_output
from bayes_adapters.data.batch import Batch
from bayes_adapters.data.rows import require_length
from bayes_adapters.distributions import TokenLogits
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.heads._checks import (
    outside_a_pass,
    require_own_inputs,
    require_own_logits,
    require_same_count,
)
from bayes_adapters.heads._tower_checks import require_one_side
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior
from bayes_adapters.likelihoods import GaussianOutputs, Likelihood
from bayes_adapters.sites import Part, Site


@dataclass(frozen=True)
class BackboneOutput:
    """What one pass of a backbone returned, S·B rows in the order [S, B].

    Args:
        value: the backbone's own output object. A head that computes by the model's own output path (its logits, with
            their scaling and bias) reads it from here rather than copying rows of the output layer.
        backbone: the module that returned it.
        mask: shape (rows, T), True where a token is real; None where all are.
        inputs: what the backbone was called with: name → tensor (rows, …).
        asked: what :meth:`Head.asks` added to them.
        own: the inputs in :attr:`Head.own_inputs` that the batch has: name → tensor (rows, …).
        heard: what the modules that :meth:`Head.listens` names returned: path → output.
    """

    value: Any
    backbone: nn.Module
    mask: Bool[Tensor, "rows T"] | None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Tensor] = field(default_factory=dict)
    heard: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hidden(self) -> Float[Tensor, "rows T d"]:
        """The last hidden states.

        Raises:
            ConfigError: the output has none.
        """
        return last_hidden_state(self.value, self.backbone)


class Head(nn.Module):
    """Base of all heads: ``outputs = forward(read(what the backbone returned))``, shape (rows, *T, K).

    A subclass has, in this order: ``name``, ``own_inputs``, ``__init__``, ``suit``, ``suit_backbone``, ``sites``,
    ``prior``, ``posterior``, ``build``, ``accept``, ``asks``, ``listens``, ``read``, ``forward``, ``expectation``,
    ``config``; ``name``, ``build`` and ``forward`` have no default. The constructor takes options only. The model then
    says for which features and which likelihood the head is, once, and puts it on its device. :meth:`forward` runs
    inside the model's pass, within the data plate, with S·B rows in the order [S, B].

    A head with random weights names them in :meth:`sites`, as global sites of the part ``FACTOR``. They are drawn once
    before the pass, with one KL per data set; ``forward`` finds the draws by :meth:`drawn`. Either the head brings
    their :meth:`prior` and :meth:`posterior`, and then stands beside any guide of the adapters, which never sees them.
    Or it brings neither: they are then under the model's prior, and inferred by a guide that serves them, such as
    ``MeanField``. What a head that draws its outputs knows without a draw, E_q log p(y | f), it returns from
    :meth:`expectation`.

    Args:
        pooling: how hidden states become one vector per example; None is the mean, or none at all where the likelihood
            has one target per token.

    >>> import torch
    >>> from bayes_adapters.likelihoods import Categorical
    >>> class Cosine(Head):
    ...     name = "cosine"
    ...     def build(self, width, likelihood):
    ...         self.rows = nn.Parameter(torch.randn(likelihood.num_outputs, width))
    ...     def forward(self, features):
    ...         return nn.functional.cosine_similarity(features[..., None, :], self.rows, dim=-1)
    >>> head = Cosine(pooling="cls")
    >>> head.prepare(4, Categorical(3))
    >>> head(torch.randn(2, 4)).shape
    torch.Size([2, 3])
    """

    name: ClassVar[str]
    """The registered name, as written into saved adapters."""
    own_inputs: ClassVar[tuple[str, ...]] = ()
    """Entries of ``Batch.inputs`` that the head reads and the backbone does not see."""

    def __init__(self, pooling: Pooling | str | None = None) -> None:
        super().__init__()
        self._pooling = None if pooling is None else choice(Pooling, "pooling", pooling)
        self._built = False

    @property
    def pooling(self) -> Pooling:
        """How hidden states become one vector per example; the mean until the model says what the head is for."""
        return Pooling.MEAN if self._pooling is None else self._pooling

    @pooling.setter
    def pooling(self, pooling: Pooling) -> None:
        self._pooling = pooling

    @property
    def per_token(self) -> bool:
        """Whether there are outputs for every token, rather than for every example."""
        return self.pooling is Pooling.NONE

    def prepare(self, width: int, likelihood: Likelihood) -> None:
        """Choose the pooling, check that head and likelihood fit, and build; the model calls this once.

        Raises:
            ConfigError: the head is another model's, or gives outputs per token where the likelihood has one target per
                example, or the other way round.
        """
        self.suit(likelihood)
        if self._built:
            raise ConfigError(
                f"This {type(self).__name__} is the head of another model; two models cannot share one. Make a new one "
                "for each, or head.fresh()."
            )
        self.build(width, likelihood)
        self._built = True

    def suit(self, likelihood: Likelihood) -> None:
        """Choose the pooling where none was given; raise :class:`ConfigError` if head and likelihood do not fit."""
        if self._pooling is None:
            self._pooling = Pooling.NONE if likelihood.per_token else Pooling.MEAN
        require_own_logits(type(self).__name__, likelihood)
        require_one_side(type(self).__name__, likelihood)
        require_same_count(type(self).__name__, self.pooling.value, self.per_token, likelihood)

    def suit_backbone(self, backbone: nn.Module, width: int) -> None:
        """Raise :class:`ConfigError` unless the head can read what ``backbone`` returns; asked once, before a pass.

        By default a head that reads hidden states refuses models with a task head, which return none.

        Args:
            backbone: without adapters yet.
            width: d, of what the structure makes of its hidden states.
        """
        if type(self).read is Head.read:
            require_no_task_head(backbone)

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        """Return the sample sites of the head's random weights; none by default. Called before :meth:`build`."""
        return []

    @property
    def may_be_random(self) -> bool:
        """Whether the class names sites at all, so that a model of it may need ``num_data``."""
        return type(self).sites is not Head.sites

    def prior(self, site: Site) -> TorchDistributionMixin | None:
        """Return the prior of one of :meth:`sites`, whose shape broadcasts to ``site.shape``.

        None, the default: the model's prior and the model's guide serve the site.
        """
        return None

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        """Return the posterior of the ``sites`` that have a :meth:`prior`: a new module, which a guide will hold."""
        raise NotImplementedError

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Make the parameters.

        Args:
            width: d, the width of what :meth:`read` returns, or of what the structure gives :meth:`forward`.
            likelihood: ``likelihood.num_outputs`` is K.
        """
        raise NotImplementedError

    def accept(self, batch: Batch) -> None:
        """Raise :class:`DataError` for a batch whose inputs or targets the head cannot take."""
        require_own_inputs(type(self).__name__, self.own_inputs, batch.inputs)

    def asks(self, backbone: nn.Module, batch: Batch) -> dict[str, Any]:
        """Return arguments that the backbone is called with besides the batch's; they are the same for all rows."""
        return {}

    def listens(self, backbone: nn.Module) -> tuple[str, ...]:
        """Return paths of modules in ``backbone`` whose output :meth:`read` needs besides the backbone's own."""
        return ()

    def read(self, output: BackboneOutput) -> Any:
        """Return the features in what the backbone returned: by default its pooled last hidden states."""
        if self.pooling is Pooling.POOLER:
            return pooler_output(output.value, output.backbone)
        hidden = output.hidden
        if output.mask is not None and not self.per_token:
            require_length(output.mask, hidden.shape[1], "the backbone returns")
        return self.pooling(hidden, output.mask)

    def forward(self, features: Any) -> Float[Tensor, "rows *T K"] | GaussianOutputs | TokenLogits:
        """Map features to the likelihood's outputs, or to their moments where the likelihood has ``expected``."""
        raise NotImplementedError

    def expectation(self, likelihood: Likelihood, targets: Any) -> Callable[[], Float[Tensor, " rows"]] | None:
        """Return what computes E_q log p(y | f), or a bound of it, for every row; q is the head's own posterior.

        The model asks after :meth:`forward`, in the same pass; :class:`bayes_adapters.ELBO` calls what is returned in
        the place of the density at the draw. q is found in ``drawn(name).posterior``. None, the default: the density at
        the draw is the estimate.
        """
        return None

    def drawn(self, name: str) -> Weight:
        """Return this pass's draw of one of :meth:`sites`: ``drawn(name).times(features)`` for a matrix.

        Raises:
            ConfigError: no pass of a model runs.
        """
        return self.current_pass(name).weights[Part.FACTOR, name]

    def current_pass(self, name: str) -> ForwardPass:
        """Return the pass that runs, which has drawn the site ``name``; raise :class:`ConfigError` where none does."""
        forward_pass = current_pass()
        if forward_pass is None:
            raise outside_a_pass(type(self).__name__, name)
        return forward_pass

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        return {"pooling": self.pooling.value}

    def fresh(self) -> Head:
        """Return a head of the same class and options that belongs to no model yet."""
        return type(self)(**self.config())
