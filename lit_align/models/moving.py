"""A second value of the weights that are trained, for a reference that follows the policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lit_align.types import Policy


@final
class MovingWeights(nn.Module):
    """Where a policy's trained weights once were, or their average: of the whole model, or of its LoRA adapter.

    They are in ``state_dict`` under the names of the policy's parameters, but they are neither parameters nor buffers: no
    optimizer and no strategy sees them. They are float32 at least, as most steps of an average are smaller than bfloat16 can
    tell. With the policy's ``reference_offload`` they stay on the CPU, else they are where the policy is.

    Args:
        policy: whose weights these are. At first they are its own; `advance` and `replacing` want the same policy.
    """

    rollout: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        trained = {name: parameter.detach() for name, parameter in policy.named_parameters() if parameter.requires_grad}
        self._values = {name: p.to(torch.promote_types(p.dtype, torch.float32), copy=True) for name, p in trained.items()}
        self.register_buffer("rollout", torch.tensor(-1))  # the last one that they moved for
        self.register_state_dict_post_hook(_add_values)
        self.register_load_state_dict_pre_hook(_take_values)

    @torch.no_grad()
    def advance(self, policy: Policy, rollout: int, share: float) -> None:
        """Go ``share`` of the way to the policy's weights, at 1 to the same bits, unless they did so for this rollout before.

        The first time they become the policy's in any case: by then every process has the same, an adapter's random factors too.
        """
        if self.rollout == rollout:
            return
        share = 1.0 if self.rollout < 0 else share
        for value, parameter in self._pairs(policy):
            value.lerp_(parameter.to(value), share)
        self.rollout.fill_(rollout)

    @contextmanager
    def replacing(self, policy: Policy) -> Iterator[None]:
        """The policy with these weights, rounded to its precision, instead of its own; for forwards without gradient.

        Its parameters are exchanged as objects and not written to: autocast keeps the casts that it made of them.
        """
        held = {p: nn.Parameter(value.to(p.device, p.dtype), requires_grad=False) for value, p in self._pairs(policy)}
        places = [(m, name, p) for m in policy.modules() for name, p in m.named_parameters(recurse=False) if p in held]
        for module, name, parameter in places:  # a tied one has several
            setattr(module, name, held[parameter])
        try:
            yield
        finally:
            for module, name, parameter in places:
                setattr(module, name, parameter)

    def _pairs(self, policy: Policy) -> Iterator[tuple[Tensor, nn.Parameter]]:
        """Every value, where it should be, with the parameter that it is one of."""
        for name, parameter in policy.named_parameters():
            if name in self._values:
                if not policy.reference_offload:
                    self._values[name] = self._values[name].to(parameter.device)
                yield self._values[name], parameter


def _add_values(module: MovingWeights, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state.update({prefix + name: value for name, value in module._values.items()})


def _take_values(
    module: MovingWeights,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: Any,
    errors: list[str],
) -> None:
    for name, value in module._values.items():
        found = state.pop(prefix + name, None)
        if found is None:
            missing.append(prefix + name)
        elif found.shape != value.shape:
            errors.append(f"size mismatch for {prefix + name}: {tuple(found.shape)} in the checkpoint, {tuple(value.shape)} here.")
        else:
            value.copy_(found)
