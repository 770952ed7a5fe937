"""Proximal policy optimization of a language model. https://arxiv.org/abs/1707.06347"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from lit_align.algorithms.anchors import Anchor, Initial
from lit_align.algorithms.base import AlignmentModule, OptimizerCallable, ScheduleCallable
from lit_align.algorithms.credit import GAE, Credit
from lit_align.algorithms.critic import critic_of
from lit_align.algorithms.parts import Surrogate, require_price
from lit_align.algorithms.stepping import Companion
from lit_align.algorithms.weighting import KLTarget
from lit_align.functional.distributed import global_mean
from lit_align.functional.divergences import kl_k3
from lit_align.functional.gae import clipped_value_loss, token_rewards, whitened
from lit_align.functional.policy_gradient import clipped_surrogate
from lit_align.models.dropout import switch_off_dropout
from lit_align.types import AlignmentBatch, Critic, Diagnostics, Needs, Policy, PolicyOutput


@final
class PPO(AlignmentModule):
    r"""Policy gradient against a critic that says, before every token, what is to be expected.

    .. math:: L_t = -\min(\rho_t A_t, clip(\rho_t, 1 - \epsilon, 1 + \epsilon) A_t) + w\, \ell(V_t) - h\, H_t, \qquad
        \rho_t = \pi_\theta(y_t) / \pi_t(y_t)

    with :math:`A` made by ``credit`` from :math:`r_t = s [t = \text{last}] - \beta \log (\pi_t / \pi_{ref})(y_t)` and the critic's
    values at the rollout. The loss is a mean over tokens. The defaults are those of the N implementation details of RLHF with PPO,
    https://arxiv.org/abs/2403.17031; docs/algorithms/ppo.md goes through them.

    Args:
        policy: the language model to train.
        critic: a model of its own, such as ``ValueModel`` of a reward model's folder. None for the policy's ``value_head``, which shares
            its trunk, or where it has none for a new critic made of the policy's folder.
        critic_settings: in which the optimizer's group of the critic, or of the value head, differs, such as ``lr: 1e-5``.
        beta: price of a nat of divergence from the reference, in units of reward; at 0 no reference is loaded.
        kl_target: moves ``beta``, then above 0, until the policy stays at a divergence.
        missing_eos: the score of a response that did not end by itself, whatever the annotator gave it, so that going on for ever is
            never worth anything; None leaves its score. (``missing_eos_penalty`` of the data module is taken off instead.)
        centre: take the mean score of the first rollout, which is the reference's, off all scores of the run, or that of the
            first one of an annotator that has learnt; ``missing_eos`` then is
            worse than an average answer.
        whiten_rewards: divide the rewards of tokens by their standard deviation over the rollout on all ranks; their mean stays.
        whiten_advantages: standardise the advantages over all tokens of the rollout on all ranks.
        credit: how rewards and values become advantages and returns.
        surrogate: the loss of a token.
        value_clip: how far a value may go towards its return within a rollout before it has no more gradient, in units of reward;
            infinity for any distance.
        value_weight: of the critic's loss beside the policy's. With a trunk of its own and an optimizer that divides by the size of the
            gradient it matters little; on a shared one it says whom the trunk serves.
        entropy: price of a missing nat of entropy of each token's choice; above 0 it is computed, in chunks, from the whole vocabulary.
        kl_stop: where the policy has moved so many nats per token from the one that sampled, the rest of the rollout's optimizer steps
            is left out, on all ranks; None for never.
        dropout: keep the model's own dropout in training forwards. Without it, ratios of the first step are exactly 1.
        anchor: which policy is the reference.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step, also one that is left out.

    Raises:
        UserError: if there are two critics, one reads other tokens than the policy, or a price is negative.
    """

    first_mean: Tensor
    mean_known: Tensor
    measured_version: Tensor
    price_factor: Tensor
    stopped: Tensor
    stopped_steps: Tensor

    def __init__(
        self,
        policy: Policy,
        critic: Critic | None = None,
        critic_settings: dict[str, Any] | None = None,
        beta: float = 0.05,
        kl_target: KLTarget | None = None,
        missing_eos: float | None = -1.0,
        centre: bool = True,
        whiten_rewards: bool = True,
        whiten_advantages: bool = True,
        credit: Credit = GAE(),
        surrogate: Surrogate = clipped_surrogate,
        value_clip: float = 0.2,
        value_weight: float = 0.1,
        entropy: float = 0.0,
        kl_stop: float | None = None,
        dropout: bool = False,
        anchor: Anchor = Initial(),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=3e-6, eps=1e-5, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_schedule, anchor, critic_of(policy, critic))
        require_price("beta", beta, zero=kl_target is None)
        require_price("value_clip", value_clip)
        require_price("value_weight", value_weight)
        require_price("entropy", entropy, zero=True)
        if kl_stop is not None:
            require_price("kl_stop", kl_stop)
        self.critic_settings = critic_settings or {}
        self.beta, self.kl_target, self.missing_eos, self.centre = beta, kl_target, missing_eos, centre
        self.whiten_rewards, self.whiten_advantages, self.credit = whiten_rewards, whiten_advantages, credit
        self.surrogate, self.value_clip, self.value_weight = surrogate, value_clip, value_weight
        self.entropy, self.kl_stop = entropy, kl_stop
        if not dropout:
            switch_off_dropout(self)
        self.register_buffer("first_mean", torch.zeros(()))
        self.register_buffer("mean_known", torch.zeros((), dtype=torch.bool))
        self.register_buffer("measured_version", torch.zeros((), dtype=torch.long))  # of the annotator
        self.register_buffer("price_factor", torch.ones(()))
        self.register_buffer("stopped", torch.zeros((), dtype=torch.bool))  # the rest of this rollout is left out
        self.register_buffer("stopped_steps", torch.zeros((), dtype=torch.long))

    @property
    def needs(self) -> Needs:
        """Values; the reference and entropies where they have a price."""
        return Needs(reference=self.beta > 0, sampled=True, values=True, entropy=self.entropy > 0)

    @property
    def companion(self) -> Companion:
        """The critic, or the value head."""
        module = self.policy.value_head if self.critic is None else self.critic
        assert module is not None
        return module, self.critic_settings

    def prepare(self, batch: AlignmentBatch) -> tuple[AlignmentBatch, Diagnostics]:
        """Advantages and returns of every token of a rollout, ``[B, K, T]``."""
        assert batch.values is not None
        self.stopped.fill_(False)
        mask = batch.loss_mask & batch.valid.unsqueeze(-1)
        beta = self._price(batch)
        advantages, returns = self.credit.assign(self._rewards(batch, mask, beta), batch.values, mask)
        error = global_mean((returns - batch.values).square(), mask)
        spread = global_mean((returns - global_mean(returns, mask)).square(), mask)
        diagnostics = {
            "kl/price": torch.full_like(error, beta),
            "value/return": returns,
            "value/explained_variance": 1 - error / spread.clamp(min=1e-8),
        }
        advantages = whitened(advantages, mask) if self.whiten_advantages else advantages
        return replace(batch, advantages=advantages, returns=returns), diagnostics

    def objective(self, batch: AlignmentBatch, output: PolicyOutput) -> tuple[Tensor, Diagnostics]:
        """Losses of tokens, ``[B, K, T]``."""
        assert batch.advantages is not None
        assert batch.returns is not None
        assert batch.values is not None
        assert output.values is not None
        log_ratios = batch.above_sampling(output.token_logps)
        losses, clipped = self.surrogate(log_ratios, batch.advantages, batch.loss_mask)
        value_losses, value_clipped = clipped_value_loss(output.values, batch.values, batch.returns, clip=self.value_clip)
        diagnostics = {
            "ratio/clipped_fraction": clipped.float(),
            "ratio/kl": kl_k3(-log_ratios.detach(), torch.zeros_like(log_ratios)),
            "value/clipped_fraction": value_clipped.float(),
            "value/error": (output.values.detach() - batch.returns).square(),
        }
        losses = losses + self.value_weight * value_losses
        if self.entropy:
            assert output.entropy is not None
            losses = losses - self.entropy * output.entropy
            diagnostics["policy/entropy"] = output.entropy.detach()
        return losses, diagnostics

    def takes_step(self, measured: Mapping[str, float]) -> bool:
        """Not where the policy has gone too far from the one that sampled, nor any more in this rollout."""
        if self.kl_stop is None:
            return True
        self.stopped |= measured["ratio/kl"] > self.kl_stop
        self.stopped_steps += self.stopped
        self.log("train/stopped_steps", float(self.stopped_steps), batch_size=1)
        return not self.stopped

    def on_train_batch_start(self, batch: AlignmentBatch, batch_idx: int) -> None:
        """What is left out is not read, but for one response of a micro-batch: sharded models need every rank in every forward."""
        if self.kl_stop is not None and self.stopped:
            batch.valid.fill_(False)  # the loader's copy of these rows

    def _price(self, batch: AlignmentBatch) -> float:
        """Of a nat, after what this rollout showed."""
        if self.kl_target is not None:
            divergence = batch.sampling_response_logps - batch.reference_response_logps
            self.price_factor.copy_(self.kl_target.moved(self.price_factor, global_mean(divergence, batch.valid)))
        return self.beta * float(self.price_factor)

    def _rewards(self, batch: AlignmentBatch, mask: Tensor, beta: float) -> Tensor:
        """Of every token, ``[B, K, T]``."""
        assert batch.sampling_logps is not None
        scores = batch.scores
        if self.centre:
            if not self.mean_known or int(self.measured_version) != batch.annotator_version:  # another annotator's scores
                self.first_mean.copy_(global_mean(scores, batch.valid))
                self.mean_known.fill_(True)
                self.measured_version.fill_(batch.annotator_version)
            scores = scores - self.first_mean
        if self.missing_eos is not None:
            scores = scores.where(batch.finished, self.missing_eos)
        token_kl = batch.above_reference(batch.sampling_logps) if beta else torch.zeros_like(batch.sampling_logps)
        rewards = token_rewards(scores, token_kl, mask, beta=beta)
        return whitened(rewards, mask, shift_mean=False) if self.whiten_rewards else rewards
