"""How large the steps of the optimizer are."""

from typing import final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


@final
class StepMonitor(Callback):
    """Logs, at every optimizer step,

    - ``train/learning_rate``: of the first parameter group, as this step uses it.
    - ``train/gradient_norm``: the Euclidean norm of the gradient over all trained parameters and ranks, before clipping, in units
      of the loss; not finite where the step is skipped. Not logged where a strategy keeps gradients to itself, as DeepSpeed does.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """After backward: the gradients are those of the whole step."""
        rate = optimizer.param_groups[0]["lr"]
        if rate is not None:  # Adafactor may choose its own
            pl_module.log("train/learning_rate", float(rate), on_step=True, on_epoch=False, batch_size=1)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of all shards
            pl_module.log("train/gradient_norm", norm.float(), on_step=True, on_epoch=False, batch_size=1)
