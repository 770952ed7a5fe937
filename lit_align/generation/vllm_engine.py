"""vLLM in the process that trains, as an engine. https://docs.vllm.ai"""

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, final

from torch import Tensor

from lit_align.functional.distributed import world_size
from lit_align.generation.engine import Engine, Written
from lit_align.types import UserError

OURS = frozenset({"model", "gpu_memory_utilization", "seed", "logprobs_mode", "generation_config", "tensor_parallel_size"})


@final
class VLLMEngine(Engine):
    """vLLM on the GPU of the trained policy, in the same process: weights are copied on the device, no server is needed.

    It needs the extra ``vllm`` and a GPU that vLLM supports, and serves one training process.

    Args:
        path: the folder or hub name of the policy, of which vLLM reads the architecture; the weights are replaced by the policy's.
        gpu_memory_utilization: share of the GPU's memory that vLLM takes for its copy of the weights and its cache; the rest is for
            training.
        options: further arguments of ``vllm.LLM``, such as ``{dtype: bfloat16, max_model_len: 2048, enforce_eager: true}``.

    Raises:
        UserError: if an argument is out of its range or set twice; when it is first given weights, if there is no vLLM, or several
            processes train.
    """

    def __init__(self, path: str, gpu_memory_utilization: float = 0.3, options: dict[str, Any] | None = None) -> None:
        if not 0 < gpu_memory_utilization < 1:
            raise UserError(f"VLLMEngine: gpu_memory_utilization should be a share between 0 and 1, got {gpu_memory_utilization}.")
        if taken := sorted(OURS & (options or {}).keys()):
            raise UserError(f"VLLMEngine sets {', '.join(taken)} of vllm.LLM itself: leave it out of `options`.")
        self.path, self.gpu_memory_utilization, self.options = os.path.expandvars(path), gpu_memory_utilization, options or {}
        self._llm: Any = None

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """vLLM's ``reload_weights``, which fuses and converts them as it does those of a file; then its prefix cache is emptied."""
        if self._llm is None:
            self._llm = self._start()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.reset_prefix_cache()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        stop_ids: Sequence[int],
    ) -> list[list[Written]]:
        """See `Engine.generate`. Every response is a request of its own, as it has a seed of its own; vLLM reads a common prompt once."""
        vllm = _vllm()
        requests, settings = [], []
        for prompt, row in zip(prompts, seeds, strict=True):
            for seed in row:
                requests.append({"prompt_token_ids": list(prompt)})
                settings.append(
                    vllm.SamplingParams(
                        temperature=temperature,
                        seed=seed,
                        max_tokens=max_new_tokens,
                        logprobs=0,  # of the drawn token alone
                        stop_token_ids=list(stop_ids),
                        ignore_eos=True,  # which tokens end a response is the policy's to say
                        detokenize=False,
                    )
                )
        said = iter(_written(request.outputs[0]) for request in self._llm.generate(requests, settings, use_tqdm=False))
        return [[next(said) for _ in row] for row in seeds]

    def close(self) -> None:
        """Let go of vLLM and its memory."""
        self._llm, self.version = None, None

    def _start(self) -> Any:
        if world_size() > 1:
            raise UserError(
                f"VLLMEngine serves one training process, but {world_size()} train. Set trainer.devices to 1, or sample with "
                "lit_align.generation.CacheSampler."
            )
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over as tensors, not pickled to another process
        return _vllm().LLM(
            model=self.path,
            gpu_memory_utilization=self.gpu_memory_utilization,
            seed=0,  # else vLLM seeds from the clock; every request has its own
            logprobs_mode="processed_logprobs",  # at the temperature that tokens are drawn at
            generation_config="vllm",  # not the folder's top-p, top-k and penalties
            **self.options,
        )


def _vllm() -> Any:
    try:
        return import_module("vllm")
    except ImportError as error:
        raise UserError(
            "VLLMEngine needs vLLM, which is not installed: `pip install 'lit-align[vllm]'`, on a machine with a GPU that it supports. "
            "Without, sample with lit_align.generation.CacheSampler."
        ) from error


def _written(output: Any) -> Written:
    tokens = list(output.token_ids)
    logps = [entry[token].logprob for token, entry in zip(tokens, output.logprobs, strict=True)]
    return Written(tokens, logps, finished=output.finish_reason == "stop")
