"""What only watches: named in a YAML by full path, as in ``class_path: callbacks.KLMonitor``. Deleting it changes no weight."""

from callbacks.histograms import Histograms
from callbacks.judge_evaluation import JudgeEvaluation
from callbacks.kl_monitor import KLMonitor
from callbacks.progress import RolloutProgressBar
from callbacks.reliability_plot import ReliabilityPlot
from callbacks.sample_table import SampleTable
from callbacks.throughput import Throughput
from callbacks.weight_clipping import WeightClipping

__all__ = [
    "Histograms",
    "JudgeEvaluation",
    "KLMonitor",
    "ReliabilityPlot",
    "RolloutProgressBar",
    "SampleTable",
    "Throughput",
    "WeightClipping",
]
