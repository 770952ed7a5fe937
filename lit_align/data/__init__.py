"""The data plane: where prompts come from, how a rollout is made, how it is fed to the Trainer."""

from lit_align.data.answers import Answers, Completions, Demonstration, Labelled, Pair, Ranked
from lit_align.data.base import AlignmentDataModule
from lit_align.data.budget import Budget
from lit_align.data.demonstrations import DemonstrationDataModule
from lit_align.data.mixed import MixedDataModule
from lit_align.data.online import OnlineDataModule
from lit_align.data.preferences import PreferenceDataModule
from lit_align.data.sampling import SamplingDataModule
from lit_align.data.sources import DatasetPrompts, DatasetStream, JsonlPrompts, JsonlStream, ListPrompts, MixedPrompts, ParquetPrompts
from lit_align.data.spend import Price

__all__ = [
    "AlignmentDataModule",
    "Answers",
    "Budget",
    "Completions",
    "DatasetPrompts",
    "DatasetStream",
    "Demonstration",
    "DemonstrationDataModule",
    "JsonlPrompts",
    "JsonlStream",
    "Labelled",
    "ListPrompts",
    "MixedDataModule",
    "MixedPrompts",
    "OnlineDataModule",
    "Pair",
    "ParquetPrompts",
    "PreferenceDataModule",
    "Price",
    "Ranked",
    "SamplingDataModule",
]
