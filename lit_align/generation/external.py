"""A sampler whose responses an external engine writes, from weights that it is sent."""

import weakref
from collections.abc import Iterator, Sequence
from typing import final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_align.generation.engine import Engine, Written
from lit_align.generation.noise import row_keys
from lit_align.generation.stopping import StopStrings, checked_stop
from lit_align.types import EncodedPrompt, Policy, Rollouts, Sampler, Stream, UserError


@final
class EngineSampler(Sampler):
    """Lets an engine draw what the policy is trained on, and keeps what it said beside what the policy says.

    The engine's kernels and precision are not the policy's, so it draws from a slightly different distribution. ``engine_logps`` are
    its own; ``sampling_logps`` are computed again by the training forward, and the loss of every response is multiplied by the
    truncated ratio of the two (losses of pairs are not). Weights are sent before the first response of a rollout, an adapter's
    change merged into a copy, and before every call that is not of training.

    Args:
        engine: writes the responses.
        max_new_tokens: longest response, EOS included. A response that reaches it without an end is not ``finished``.
        stop: strings that end a response too, as of `CacheSampler`. The engine does not know them: it writes on, and what stands
            after one is thrown away.
        synchronise_every: send weights once in so many rollouts; the others are drawn from older ones, up to
            ``synchronise_every - 1`` rollouts old, which algorithms that need samples of the policy itself refuse. A resumed run sends
            them at once.
        max_factor: the ceiling of the ratio; infinity for an exact correction of unbounded variance.

    Raises:
        UserError: if a number is out of its range, or ``stop`` is no list of texts; when sampling, if the weights are spread over ranks,
            or the engine's answer is not one response with log-probs for every seed.
    """

    def __init__(
        self,
        engine: Engine,
        max_new_tokens: int = 128,
        stop: list[str] | None = None,
        synchronise_every: int = 1,
        max_factor: float = 2.0,
    ) -> None:
        if synchronise_every < 1 or not max_factor > 0:
            raise UserError(f"EngineSampler needs synchronise_every >= 1 and max_factor > 0, got {synchronise_every} and {max_factor}.")
        self.engine, self.max_new_tokens, self.stop = engine, max_new_tokens, checked_stop(stop or [])
        self.max_staleness, self.max_factor = synchronise_every - 1, max_factor
        self._sent: weakref.ref[Policy] | None = None

    def setup(self) -> None:
        """The next call sends weights."""
        self._sent = None

    def close(self) -> None:
        """The engine lets go of its memory."""
        self.engine.close()
        self._sent = None

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        """Have the responses written; everything returned is on the policy's device."""
        device, k = next(policy.parameters()).device, responses_per_prompt
        self._send(policy, stream.version)
        ids, occurrences = torch.tensor([p.prompt.id for p in prompts]), torch.tensor([p.occurrence for p in prompts])
        seeds = row_keys(stream, ids, occurrences, k) & torch.iinfo(torch.int64).max  # [B, K]
        stops = StopStrings(self.stop, policy, seeds.numel())
        groups = self.engine.generate(
            [p.tokens for p in prompts],
            seeds.tolist(),
            max_new_tokens=self.max_new_tokens,
            temperature=policy.temperature,
            stop_ids=sorted(policy.eos_ids | stops.tokens),
        )
        self._check(groups, len(prompts), k)
        written = [_cut(one, row, stops) for row, one in enumerate(one for group in groups for one in group)]  # B * K

        tokens = _padded([list(one.tokens) for one in written], policy.pad_id).view(len(prompts), k, -1)
        logps = _padded([list(one.logps) for one in written], 0.0).view(tokens.shape)
        lengths = torch.tensor([len(one.tokens) for one in written]).view(len(prompts), k, 1)
        mask = torch.arange(tokens.shape[-1]) < lengths
        prompt_lengths = torch.tensor([[len(p.tokens)] for p in prompts])
        prompt_tokens = _padded([list(p.tokens) for p in prompts], policy.pad_id, "left")
        lines = [stops.cut(policy.decode(list(one.tokens))) for one in written]
        return Rollouts(
            prompts=tuple(p.prompt for p in prompts),
            occurrences=occurrences,
            prompt_tokens=prompt_tokens,
            prompt_mask=torch.arange(prompt_tokens.shape[1]) >= prompt_tokens.shape[1] - prompt_lengths,
            response_tokens=tokens,
            response_mask=mask,
            loss_mask=mask,
            sampling_logps=logps,
            engine_logps=logps,
            max_engine_factor=self.max_factor,
            finished=torch.tensor([one.finished for one in written]).view(len(prompts), k),
            texts=tuple(tuple(lines[i : i + k]) for i in range(0, len(lines), k)),
            policy_version=stream.rollout,
            engine_staleness=0 if self.engine.version is None else stream.rollout - self.engine.version,
        ).to(device)

    def _send(self, policy: Policy, version: int | None) -> None:
        """Bring the engine up to date, unless it has weights of this policy that are new enough. Outside training nobody says which
        version a policy is, so it is sent each time."""
        has = self.engine.version
        same = self._sent is not None and self._sent() is policy
        if same and has is not None and version is not None and 0 <= version - has <= self.max_staleness:
            return
        self._sent = None
        self.engine.synchronise(version, _whole(policy))
        self._sent = weakref.ref(policy)

    def _check(self, groups: Sequence[Sequence[Written]], prompts: int, k: int) -> None:
        who = type(self.engine).__name__
        if [len(group) for group in groups] != [k] * prompts:
            raise UserError(
                f"{who}.generate should return {k} responses to each of {prompts} prompts, got {[len(group) for group in groups]}."
            )
        for one in (one for group in groups for one in group):
            if not 0 < len(one.tokens) == len(one.logps) <= self.max_new_tokens or not torch.tensor(one.logps).isfinite().all():
                raise UserError(
                    f"{who}.generate should return 1 to {self.max_new_tokens} tokens for every response, and a finite log-prob of each, "
                    f"got {len(one.tokens)} tokens with the log-probs {list(one.logps)[:8]}."
                )


def _whole(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    for name, weight in policy.weights():
        if not weight.numel():
            raise spread(name)
        yield name, weight


def spread(name: str) -> UserError:
    """What to say of a weight of which this rank has nothing."""
    return UserError(
        f"The policy's {name} is spread over ranks and can't be copied, as under DeepSpeed ZeRO-3. Use another strategy, such as ddp, or "
        "sample with lit_align.generation.CacheSampler."
    )


def _cut(one: Written, row: int, stops: StopStrings) -> Written:
    """The response up to the token that completes a stop string."""
    for end, token in enumerate(one.tokens, start=1):
        if stops.ended(torch.tensor([row]), torch.tensor([token])):
            return Written(one.tokens[:end], one.logps[:end], finished=True)
    return one


def _padded(rows: Sequence[Sequence[int]] | Sequence[Sequence[float]], value: float, side: str = "right") -> Tensor:
    """``[N, longest]``."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value, padding_side=side)
