"""What is known of a backbone before it runs, and what has to be around it while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bayes_adapters.backbones.call_arguments import call_rules, completed_calls
from bayes_adapters.backbones.frozen_buffers import frozen_buffers, with_statistics
from bayes_adapters.backbones.placement import in_dtype_of
from bayes_adapters.backbones.prefix import FrozenPrefix, frozen_prefix
from bayes_adapters.backbones.token_ids import Longest, check_token_ids, longest_texts
from bayes_adapters.backbones.windows import counted_tokens, windowed_layers
from bayes_adapters.data.rows import Folded

_BOTH_LAYOUTS = ("longformer", "led", "xlnet")
"""Hugging Face's types of models in which some linear layers see (tokens, examples) and some (examples, tokens)."""


@dataclass(frozen=True)
class Traits:
    """Facts of one backbone, found once.

    Args:
        windows: adapted layer → the block around it that attends within windows; other layers are left out.
        longest: key of token ids → how long a text may be.
        statistics: modules whose buffers move while they run, such as batch norms.
        calls: what calls of the backbone lack and are given, such as positions of tokens behind padding.
        both_layouts: whether some layers see (tokens, examples) and some (examples, tokens).
        prefix: what runs once for all draws, if it is known.
    """

    windows: Mapping[str, str]
    longest: Mapping[str, Longest]
    statistics: Any
    calls: Any
    both_layouts: bool
    prefix: FrozenPrefix | None

    @classmethod
    def of(cls, backbone: nn.Module, layers: Sequence[str]) -> Traits:
        """Look at ``backbone``, of which the layers at the paths ``layers`` are adapted."""
        types = {getattr(getattr(net, "config", None), "model_type", "") for net in (backbone, *backbone.children())}
        return cls(
            windowed_layers(backbone, layers),
            longest_texts(backbone),
            with_statistics(backbone),
            call_rules(backbone),
            not types.isdisjoint(_BOTH_LAYOUTS),
            frozen_prefix(backbone, layers),
        )

    def check(self, backbone: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """Raise :class:`DataError` for token ids that ``backbone`` cannot embed."""
        check_token_ids(backbone, inputs, self.longest)

    @contextmanager
    def around(self, backbone: nn.Module, tokens: MutableMapping[str, int]) -> Iterator[None]:
        """Within the context ``backbone`` runs as it should: its buffers stay, and padding counts nowhere.

        Args:
            backbone: what runs.
            tokens: block with windows around an adapted layer → tokens of an example at its input; written while it
                runs.
        """
        with ExitStack() as stack:
            stack.enter_context(counted_tokens(backbone, self.windows.values(), tokens))
            stack.enter_context(completed_calls(backbone, self.calls))
            stack.enter_context(frozen_buffers(self.statistics))
            yield

    def again(self) -> AbstractContextManager[None]:
        """A context in which a part of the backbone runs a second time, in backward: its buffers stay then, too."""
        return frozen_buffers(self.statistics)

    def run(
        self, backbone: nn.Module, inputs: Mapping[str, Tensor], folds: int, asked: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what ``backbone`` returns for ``inputs``, every example ``folds`` times, S·B rows in the order [S, B].

        Numbers, such as pixels, come in the dtype of the backbone's weights. What comes before the first adapted layer
        sees B rows, where it is known and computes the same for each draw. ``asked`` are further arguments, the same
        for all rows.
        """
        asked = {} if asked is None else asked
        inputs = in_dtype_of(backbone, inputs)
        if folds > 1 and self.prefix is not None and self.prefix.is_still(backbone):
            return self.prefix.run(backbone, inputs, folds, asked)
        return backbone(**Folded(inputs, folds), **asked)
