"""Any Hugging Face causal language model as a policy."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from lit_align.functional.logprobs import token_logps
from lit_align.models.reference import FrozenReference
from lit_align.types import AlignmentBatch, Policy, PolicyOutput, Prompt, Rollouts, UserError


@final
class CausalPolicy(Policy):
    """A causal language model loaded by name or folder, fully fine-tuned.

    Args:
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        temperature: divides the logits wherever the policy samples, trains or is a reference.
        dtype: of the weights. ``float32`` with the Trainer's ``precision: bf16-mixed`` is the safe choice on a GPU.
        chat_template: a Jinja file for prompts that are messages, where the tokenizer has no template of its own.

    Raises:
        UserError: if there is no such model, it has no key-value cache, or its tokenizer knows no end of sequence.
    """

    def __init__(
        self,
        path: str,
        temperature: float = 1.0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        chat_template: str | None = None,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"policy.temperature must be positive, got {temperature}. For greedy answers use a greedy sampler.")
        self.path, self.temperature, self.chat_template = os.path.expandvars(path), temperature, chat_template
        self.dtype: Literal["float32", "bfloat16"] = dtype
        self.model, self.tokenizer = _load(self.path, getattr(torch, dtype))
        self.model.train()  # from_pretrained gives eval mode, in which a configured dropout would do nothing
        if chat_template is not None:
            self.tokenizer.chat_template = _read_template(chat_template)
        accepted = inspect.signature(self.model.forward).parameters
        if "past_key_values" not in accepted:
            raise UserError(f"{type(self.model).__name__} takes no `past_key_values`: models without a key-value cache aren't supported.")
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self.eos_ids = self._find_eos_ids()
        pad = self.tokenizer.pad_token_id
        self.pad_id = min(self.eos_ids) if pad is None else pad
        self.context_length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def forward(self, batch: AlignmentBatch | Rollouts) -> PolicyOutput:
        """One row per response, prompt padded on the left and response on the right; the head reads response positions only."""
        b, k, t = batch.response_tokens.shape
        prompts, prompt_mask = batch.prompt_tokens.repeat_interleave(k, 0), batch.prompt_mask.repeat_interleave(k, 0)  # [B*K, P]
        responses, response_mask = batch.response_tokens.flatten(0, 1), batch.response_mask.flatten(0, 1)  # [B*K, T]
        mask = torch.cat([prompt_mask, response_mask], 1)
        # The last token predicts nothing that is scored, so it is not read.
        logits = self._logits(torch.cat([prompts, responses], 1)[:, :-1], mask[:, :-1], keep=t)  # [B*K, T, V]
        return PolicyOutput(token_logps=token_logps(logits, responses, self.temperature).view(b, k, t))

    def next_token_logits(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """See `Policy.next_token_logits`; the cache is a ``transformers.DynamicCache``."""
        cache = DynamicCache(config=self.model.config) if cache is None else cache
        return self._logits(tokens, mask, keep=1, cache=cache)[:, -1].float() / self.temperature, cache

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; BOS once, no trailing EOS, never empty."""
        if isinstance(prompt.content, str):
            tokens = list(self.tokenizer(prompt.content)["input_ids"])
        elif self.tokenizer.chat_template is None:
            raise UserError(
                f"The prompt is a list of messages, but the tokenizer of {self.path!r} has no chat template. "
                "Give `chat_template: FILE.jinja` to the policy, or plain-text prompts."
            )
        else:
            rendered = self.tokenizer.apply_chat_template(list(prompt.content), tokenize=False, add_generation_prompt=True)
            tokens = list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        if isinstance(prompt.content, str) and len(tokens) > 1 and tokens[-1] == self.tokenizer.eos_token_id:
            tokens.pop()  # some tokenizers end every text with EOS
        start = self.tokenizer.bos_token_id
        return tokens or [min(self.eos_ids) if start is None else start]

    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of an answer, ended by EOS; tokenised together with a plain-text prompt where that leaves the prompt's
        own tokens as they are, so that a word boundary between them is what the model knows."""
        end = self.tokenizer.eos_token_id
        end = min(self.eos_ids) if end is None else end
        tokens = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if isinstance(prompt.content, str) and prompt.content:
            start = self.encode(prompt)
            joint = list(self.tokenizer(prompt.content + text)["input_ids"])
            if joint[: len(start)] == start:
                tokens = joint[len(start) :]
        while tokens[-1:] == [end]:  # in the text, or added by the tokenizer, or both
            tokens.pop()
        return [*tokens, end]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of response tokens, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def make_reference(self) -> FrozenReference:
        """Loaded again from ``path``."""
        return FrozenReference(CausalPolicy(self.path, self.temperature, self.dtype, self.chat_template))

    def save(self, folder: str) -> None:
        """Write a Hugging Face folder that ``CausalPolicy(folder)`` and ``from_pretrained`` read."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _logits(self, tokens: Tensor, mask: Tensor, keep: int, cache: DynamicCache | None = None) -> Tensor:
        """Logits of the last ``keep`` positions, ``[N, keep, V]``."""
        options: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
        if self._takes_positions:
            options["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        if self._takes_keep:
            options["logits_to_keep"] = keep
        output = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=cache is not None, **options)
        return output.logits[:, -keep:]

    def _find_eos_ids(self) -> frozenset[int]:
        """Every id that ends a response: of the generation config, the model config and the tokenizer."""
        generation = self.model.generation_config
        sources = [generation and generation.eos_token_id, self.model.config.eos_token_id, self.tokenizer.eos_token_id]
        found = {i for source in sources if source is not None for i in (source if isinstance(source, list) else [source])}
        if not found:
            raise UserError(
                f"Neither the tokenizer nor the configs of {self.path!r} name an end-of-sequence token, so no response could end. "
                "Set `eos_token_id` in its generation_config.json."
            )
        return frozenset(found)


def _load(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        kind = "a folder without a readable model" if Path(path).is_dir() else "neither a folder here nor a model that the hub gives"
        raise UserError(
            f"No policy at {path!r}: it is {kind}. Expected a folder with config.json, weights and a tokenizer, or a hub name.\n"
            f"The current folder is {Path.cwd()}. The loader said: {str(error).splitlines()[0]}"
        ) from error


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"chat_template should be a readable Jinja file, got {path!r}: {error}.") from error
