"""The mathematics: tensors in, tensors out. Nothing here knows of models, data or Lightning, and imports torch only."""

from lit_align.functional.advantages import comparable, group_centred, group_standardised, leave_one_out, within_group_variance
from lit_align.functional.dar import (
    centred_weights,
    dar_group_weights,
    dar_log_weights,
    dar_weights,
    effective_sample_size,
    is_clipped,
)
from lit_align.functional.distributed import global_mean, global_std, global_sum
from lit_align.functional.divergences import kl_from_logits, kl_k1, kl_k2, kl_k3
from lit_align.functional.gradients import squared_norm_share
from lit_align.functional.logprobs import response_logps, token_logps
from lit_align.functional.verdicts import centred_score, expected_score, swap_averaged

__all__ = [
    "centred_score",
    "centred_weights",
    "comparable",
    "dar_group_weights",
    "dar_log_weights",
    "dar_weights",
    "effective_sample_size",
    "expected_score",
    "global_mean",
    "global_std",
    "global_sum",
    "group_centred",
    "group_standardised",
    "is_clipped",
    "kl_from_logits",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "leave_one_out",
    "response_logps",
    "squared_norm_share",
    "swap_averaged",
    "token_logps",
    "within_group_variance",
]
