"""Supervised fine-tuning: every token counts the same."""

import torch
from torch.testing import assert_close

from lit_align.algorithms import SFT
from lit_align.types import Needs
from tests.algorithms.worlds import REFERENCE, TablePolicy, make_batch
from tests.tiny import sgd

PROMPTS, RESPONSES, GOOD = torch.tensor([0, 1, 1, 0]), torch.tensor([[0], [1], [4], [2]]), torch.ones(4, 1)


def test_the_loss_is_the_mean_over_answer_tokens_whatever_the_micro_batches():
    module = SFT(TablePolicy(REFERENCE), sgd())
    assert module.needs == Needs()
    batch, diagnostics = module.prepare(make_batch(PROMPTS, RESPONSES, scores=GOOD))
    assert diagnostics == {}
    tokens = module.policy(batch).token_logps[batch.loss_mask]
    assert len(tokens) == 7  # the first answer has one
    for micro in (4, 2, 1):
        loss = sum(module.training_step(batch.rows(rows), 0)["loss"] for rows in torch.arange(4).split(micro))
        assert_close(loss, -tokens.mean())


def test_tokens_that_are_not_the_policys_are_not_learnt():
    module = SFT(TablePolicy(REFERENCE), sgd())
    mask = make_batch(PROMPTS, RESPONSES).loss_mask.clone()
    mask[1, 0, 0] = False  # a tool's
    batch = make_batch(PROMPTS, RESPONSES, loss_mask=mask, token_normaliser=torch.tensor(6.0))
    loss = module.training_step(batch, 0)["loss"]
    assert_close(loss, -module.policy(batch).token_logps[mask].mean())


def test_only_answers_of_score_one_are_imitated():
    module = SFT(TablePolicy(REFERENCE), sgd())
    scores = torch.tensor([[1.0], [0.0], [1.0], [0.5]])
    valid = torch.tensor([[True], [True], [False], [True]])
    batch, _ = module.prepare(make_batch(PROMPTS, RESPONSES, scores=scores, valid=valid, token_normaliser=torch.tensor(1.0)))
    assert batch.valid.tolist() == [[True], [False], [False], [False]]
    loss = module.training_step(batch, 0)["loss"]
    assert_close(loss, -module.policy(batch).token_logps[0, 0, :1].sum())
