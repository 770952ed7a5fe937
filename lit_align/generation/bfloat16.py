"""A sampler that reads a bfloat16 copy of the policy."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from lit_align.generation.external import spread
from lit_align.generation.sampler import CacheSampler
from lit_align.generation.stopping import checked_stop
from lit_align.types import EncodedPrompt, Policy, Rollouts, Sampler, Stream, UserError


@final
class Bfloat16Sampler(Sampler):
    """Lets a copy of the policy in bfloat16 draw what the policy, in float32, is trained on.

    The copy, half as large as the policy, is made at the first rollout and brought up to date at every later one; an adapter is merged into
    it. It is read as `CacheSampler` reads the policy: the same noise, ways, stop strings. Rounded weights are another distribution, so
    the copy is treated as the engine of an `EngineSampler` is: ``engine_logps`` are its own, ``sampling_logps`` are computed again by the
    training forward, and the loss of every response is multiplied by the truncated ratio of the two (losses of pairs are not).

    Whatever is not sampled to be trained on (validation, test, judges' win rates, predictions) is drawn from the policy itself.

    Args:
        max_new_tokens: longest response, EOS included. A response that reaches it without an end is not ``finished``.
        stop: strings that end a response too, as of `CacheSampler`.
        max_factor: the ceiling of the ratio; infinity for an exact correction of unbounded variance.

    Raises:
        UserError: if ``stop`` is no list of texts, or ``max_factor`` not positive; when sampling, if the policy's weights are spread over
            ranks, or not in float32.
    """

    def __init__(self, max_new_tokens: int = 128, stop: list[str] | None = None, max_factor: float = 2.0) -> None:
        if not max_factor > 0:
            raise UserError(f"Bfloat16Sampler needs max_factor > 0, got {max_factor}.")
        self.max_new_tokens, self.stop, self.max_factor = max_new_tokens, checked_stop(stop or []), max_factor
        self._copy: Policy | None = None
        self._source: weakref.ref[Policy] | None = None  # what it is a copy of
        self._version: int | None = None  # rollouts that the source had been trained on; None if the next call has to copy again

    def setup(self) -> None:
        """The next call copies the weights."""
        self._version = None

    def close(self) -> None:
        """Drop the copy."""
        self._copy, self._source, self._version = None, None, None

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        """Draw the responses; everything returned is on the policy's device."""
        sampler = CacheSampler(self.max_new_tokens, stop=list(self.stop))
        if stream.version is None:
            return sampler.sample(policy, prompts, responses_per_prompt, stream)
        device = next(policy.parameters()).device.type
        with torch.autocast(device, enabled=False):  # the copy rounds as it is, whatever the precision of training
            drawn = sampler.sample(self._up_to_date(policy, stream.version), prompts, responses_per_prompt, stream)
        return replace(drawn, engine_logps=drawn.sampling_logps, max_engine_factor=self.max_factor)

    def _up_to_date(self, policy: Policy, version: int) -> Policy:
        """The copy, with the weights of this version of the policy."""
        if self._source is None or self._source() is not policy:
            self.close()
        if self._copy is None or self._version != version:
            self._version = None  # in case that copying fails
            if name := next((name for name, weight in policy.named_parameters() if not weight.numel()), None):
                raise spread(name)
            self._copy = policy.rounded(self._copy)
            self._source, self._version = weakref.ref(policy), version
        return self._copy
