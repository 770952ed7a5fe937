"""Online alignment of language models on PyTorch Lightning: sample from the policy, label the samples, train, repeat.

Importing the package is free: it loads neither torch nor any of its own modules.
"""

__version__ = "0.1.0"
