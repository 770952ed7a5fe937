"""What only watches: named in a YAML by full path, as in ``class_path: callbacks.KLMonitor``. Deleting it changes no weight."""

from callbacks.judge_evaluation import JudgeEvaluation
from callbacks.kl_monitor import KLMonitor
from callbacks.progress import RolloutProgressBar
from callbacks.sample_table import SampleTable
from callbacks.weight_clipping import WeightClipping

__all__ = ["JudgeEvaluation", "KLMonitor", "RolloutProgressBar", "SampleTable", "WeightClipping"]
