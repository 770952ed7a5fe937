"""A reward model, trained on comparisons of responses."""

from dataclasses import replace
from typing import NoReturn, final

import torch
from torch import Tensor
from torchmetrics.classification import BinaryCalibrationError

from lit_align.algorithms.data_smoothing import SmoothedLabels
from lit_align.algorithms.pairing import AllPairs, Pairing
from lit_align.algorithms.reduction import counted
from lit_align.algorithms.reward_losses import BradleyTerry, RewardLoss
from lit_align.algorithms.stepping import OptimizerCallable, ScheduleCallable, SteppingModule
from lit_align.functional.distributed import global_mean
from lit_align.models import RewardNetwork
from lit_align.types import AlignmentBatch, Diagnostics, Needs, RewardStepOutput, UserError

BINS = 20  # of the calibration error, between 0 and 1; a winner's probability fills the upper half


@final
class RewardModel(SteppingModule):
    r"""One number for a response, so that differences say who is preferred: :math:`P(i \text{ beats } j) = \sigma(v_i - v_j)`.

    The loss is the mean over the pairs of an optimizer step. A row that the data module had to cut is not what an annotator would
    read: it is in no pair, nor is a tie.

    Args:
        network: what is trained.
        loss: what its scores cost.
        pairing: which responses are compared, and whether labels are soft.
        data_smoothing: how far a pair's label moves towards the model's belief each time it comes round again, from 0 (it stays) to
            below 1: iterative data smoothing.
        optimizer: makes the optimizer from the trained parameters.
        lr_schedule: makes the learning-rate schedule; it advances once per optimizer step.

    Raises:
        UserError: if ``data_smoothing`` is out of its range, or labels should be soft and ``loss`` reads none.
    """

    def __init__(
        self,
        network: RewardNetwork,
        loss: RewardLoss = BradleyTerry(),
        pairing: Pairing = AllPairs(),
        data_smoothing: float = 0.0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        lr_schedule: ScheduleCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule)
        if not 0 <= data_smoothing < 1:
            raise UserError(f"data_smoothing is the share by which a label moves, at least 0 and below 1, got {data_smoothing}.")
        if (data_smoothing or pairing.soft) and not loss.reads_labels:
            raise UserError(
                f"{type(loss).__name__} reads who won, not how surely: set data_smoothing to 0 and the pairing's `soft` to false, or take "
                "`loss: BradleyTerry`."
            )
        self.network, self.loss, self.pairing = network, loss, pairing
        self.labels = SmoothedLabels(data_smoothing) if data_smoothing else None
        self.calibration = BinaryCalibrationError(n_bins=BINS, validate_args=False)

    @property
    def text_model(self) -> RewardNetwork:
        """The network."""
        return self.network

    @property
    def policy(self) -> NoReturn:
        """There is none.

        Raises:
            UserError: always.
        """
        raise UserError("RewardModel trains no policy, so nothing can be sampled: give it fixed pairs instead of OnlineDataModule.")

    @property
    def needs(self) -> Needs:
        """Somebody to be compared with."""
        return Needs(responses=2)

    @torch.no_grad()
    def prepare_rollout(self, batch: AlignmentBatch, needs: Needs, chunk_prompts: int) -> tuple[AlignmentBatch, Diagnostics]:
        """Pairs of a rollout and their labels, ``[B, K, K]``."""
        labelled, batch = batch.valid, self._paired(batch)
        pairs = batch.pairs
        assert pairs is not None
        if self.labels is not None:
            rows = torch.arange(len(batch.scores), device=batch.scores.device).split(chunk_prompts)
            values = torch.cat([self.values(batch.rows(part)) for part in rows])
            pairs = self.labels.moved(batch.prompt_ids, pairs, values.unsqueeze(-1) - values.unsqueeze(-2))
            batch = replace(batch, pairs=pairs)
        diagnostics = {"pairs/per_prompt": (~pairs.isnan()).sum((-1, -2)).float(), "pairs/label": pairs.nan_to_num(0.0)}
        metrics = {name: global_mean(value, counted(value, batch)) for name, value in diagnostics.items()}
        self.log_rollout(metrics | {"response/cut": global_mean((~batch.finished).float(), labelled)})
        return batch, diagnostics

    def values(self, batch: AlignmentBatch) -> Tensor:
        """The score of every response that is in a pair, ``[B, K]``; 0 elsewhere."""
        rows, columns = batch.used.nonzero(as_tuple=True)
        if not len(rows):  # sharded networks need every rank in every forward
            rows = columns = rows.new_zeros(1)
        mask = batch.response_mask[rows, columns]
        mask[:, 0] = True  # so it is of every row in a pair
        scores = self.network(batch.response_tokens[rows, columns], mask)
        return scores.new_zeros(batch.valid.shape).index_put((rows, columns), scores)

    def objective(self, batch: AlignmentBatch, values: Tensor) -> tuple[Tensor, Diagnostics]:
        """The loss of every pair, ``[B, K, K]``; not meaningful where there is none."""
        shown = (values.unsqueeze(-1) - values.unsqueeze(-2)).detach()
        return self.loss.losses(values, batch), {"pairs/margin": shown, "pairs/accuracy": (shown > 0).float()}

    def training_step(self, batch: AlignmentBatch, batch_idx: int) -> RewardStepOutput:
        """One micro-batch: the sum of its losses over the normaliser of the whole optimizer step."""
        if batch.dropout_seed is not None:
            torch.manual_seed(batch.dropout_seed)
        values = self.values(batch)
        losses, diagnostics = self.objective(batch, values)
        loss = self.step_loss(losses, diagnostics, batch)
        return RewardStepOutput(loss=loss, losses=losses.detach(), scores=values.detach(), diagnostics=diagnostics)

    def validation_step(self, batch: AlignmentBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log ``val/*`` of held-out pairs; their ``margins``, winner minus loser, ``[N]``, are for callbacks."""
        return self._log_evaluation("val", batch)

    def test_step(self, batch: AlignmentBatch, batch_idx: int) -> dict[str, Tensor]:
        """As `validation_step`."""
        return self._log_evaluation("test", batch)

    def predict_step(self, batch: AlignmentBatch, batch_idx: int) -> NoReturn:
        """There is nothing to predict.

        Raises:
            UserError: always.
        """
        raise UserError("predict writes sampled answers, and a reward model has none: export it, and let RewardModelAnnotator score them.")

    def _paired(self, batch: AlignmentBatch) -> AlignmentBatch:
        """What was cut, or is empty, is invalid."""
        batch = replace(batch, valid=batch.valid & batch.finished & batch.response_mask.any(-1))
        return replace(batch, pairs=self.pairing.pairs(batch))

    def _log_evaluation(self, stage: str, batch: AlignmentBatch) -> dict[str, Tensor]:
        batch = self._paired(batch)
        losses, diagnostics = self.objective(batch, self.values(batch))
        named = {"loss": losses} | {name.rpartition("/")[2]: value for name, value in diagnostics.items()}
        self.log_means(stage, {name: (value, counted(value, batch)) for name, value in named.items()})
        margins = diagnostics["pairs/margin"][counted(losses, batch)].float()
        self.calibration.update(margins.abs().sigmoid(), (margins > 0).long())
        self.log(f"{stage}/calibration_error", self.calibration, on_epoch=True, batch_size=1)
        return {"margins": margins}
