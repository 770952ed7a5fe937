"""What every test may rely on: no network, one thread."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a missing model is then an error at once

import torch

torch.set_num_threads(1)
