"""What one call sees: batches, frames of context, and their rows."""

from bayes_adapters.data.batch import TOKEN_MASK as TOKEN_MASK
from bayes_adapters.data.batch import Batch as Batch
from bayes_adapters.data.batch import Frames as Frames
from bayes_adapters.data.batch import TargetValues as TargetValues
from bayes_adapters.data.scales import frame_statistics as frame_statistics
