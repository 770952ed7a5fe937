"""The mathematics: tensors in, tensors out. Nothing here knows of models, data or Lightning, and imports torch only."""

from lit_align.functional.advantages import comparable, group_centred, group_standardised, has_spread, leave_one_out, within_group_variance
from lit_align.functional.dar import (
    centred_weights,
    dar_group_weights,
    dar_log_weights,
    dar_regression_loss,
    dar_regression_targets,
    dar_weights,
    effective_sample_size,
    is_clipped,
)
from lit_align.functional.distributed import global_mean, global_std, global_sum
from lit_align.functional.divergences import kl_from_logits, kl_k1, kl_k2, kl_k3
from lit_align.functional.gradients import squared_norm_share
from lit_align.functional.logprobs import response_logps, token_logps, vocabulary_logps
from lit_align.functional.pairs import all_pairs_from_preferences, all_pairs_from_scores, best_versus_worst, bradley_terry, same_tokens
from lit_align.functional.policy_gradient import (
    cispo_surrogate,
    clipped_surrogate,
    kl_to_go,
    mean_per_response,
    overlong_penalty,
    sequence_clipped_surrogate,
    sum_over,
)
from lit_align.functional.preference import (
    alpha_divergence,
    dpo_loss,
    forward_kl,
    ipo_loss,
    jensen_shannon,
    kto_loss,
    log_odds,
    reverse_kl,
    simpo_loss,
    slic_loss,
)
from lit_align.functional.reward_model import bradley_terry_loss, plackett_luce_loss, smoothed_labels
from lit_align.functional.sail import answer_law_loss, label_law_loss, leave_row_out, own_labels
from lit_align.functional.verdicts import centred_score, expected_score, swap_averaged

__all__ = [
    "all_pairs_from_preferences",
    "all_pairs_from_scores",
    "alpha_divergence",
    "answer_law_loss",
    "best_versus_worst",
    "bradley_terry",
    "bradley_terry_loss",
    "centred_score",
    "centred_weights",
    "cispo_surrogate",
    "clipped_surrogate",
    "comparable",
    "dar_group_weights",
    "dar_log_weights",
    "dar_regression_loss",
    "dar_regression_targets",
    "dar_weights",
    "dpo_loss",
    "effective_sample_size",
    "expected_score",
    "forward_kl",
    "global_mean",
    "global_std",
    "global_sum",
    "group_centred",
    "group_standardised",
    "has_spread",
    "ipo_loss",
    "is_clipped",
    "jensen_shannon",
    "kl_from_logits",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_to_go",
    "kto_loss",
    "label_law_loss",
    "leave_one_out",
    "leave_row_out",
    "log_odds",
    "mean_per_response",
    "overlong_penalty",
    "own_labels",
    "plackett_luce_loss",
    "response_logps",
    "reverse_kl",
    "same_tokens",
    "sequence_clipped_surrogate",
    "simpo_loss",
    "slic_loss",
    "smoothed_labels",
    "squared_norm_share",
    "sum_over",
    "swap_averaged",
    "token_logps",
    "vocabulary_logps",
    "within_group_variance",
]
