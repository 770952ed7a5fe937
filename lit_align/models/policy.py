"""Any Hugging Face causal language model as a policy."""

import inspect
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, final

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from lit_align.functional.entropy import token_entropy
from lit_align.functional.logprobs import token_logps, vocabulary_logps
from lit_align.models.chat import check_options, render
from lit_align.models.decoding import CACHES, RowCache, chosen_way
from lit_align.models.faster import standing_way, way_to_try
from lit_align.models.layouts import Texts
from lit_align.models.loading import DType, checkpoint_activations, load_causal, load_tokenizer
from lit_align.models.lora import LoRA, add_adapter, checkpoint_adapter_only, merge_into, merged_weights
from lit_align.models.positions import context_of
from lit_align.models.probe import describe, probe
from lit_align.models.reading import UNPROBED, ResponseReader
from lit_align.models.reference import AdapterOffReference, FrozenReference
from lit_align.models.turns import TurnEncoder
from lit_align.models.value_head import new_value_head, read_values
from lit_align.types import AlignmentBatch, Message, Policy, PolicyOutput, Prompt, Reference, Rollouts, UserError

OWNER = "policy"  # in messages


@final
class CausalPolicy(Policy):
    """A causal language model loaded by name or folder, trained whole or through a LoRA adapter.

    Args:
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        temperature: divides the logits wherever the policy samples, trains or is a reference.
        dtype: of the weights. ``float32`` with the Trainer's ``precision: bf16-mixed`` is the safe choice on a GPU.
            ``bfloat16`` halves the memory, and goes with ``lora``, whose own weights stay float32.
        chat_template: a Jinja file for prompts that are messages; it takes the place of a template of the tokenizer's own.
        template_options: what else to tell the template, such as ``enable_thinking: false``.
        lora: train an adapter instead of the weights; the reference is then the same model with the adapter off.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` and so on; None is the model's own choice.
        gradient_checkpointing: in training forwards keep only each layer's input, and compute the rest again for the gradient.
        reference_offload: keep the reference on the CPU, and move it to the policy's device only while it scores.
        value_head: a second head on the last hidden states, for an algorithm that trains a critic on the policy's own trunk. It begins
            at 0, is in checkpoints, and is left out of what `save` writes.

    Raises:
        UserError: if there is no such model, its head was never trained, it has no key-value cache, its tokenizer knows no end of
            sequence, its template does not read all of ``template_options``, or it can't do what the other options ask for.
    """

    def __init__(
        self,
        path: str,
        temperature: float = 1.0,
        dtype: DType = "float32",
        chat_template: str | None = None,
        template_options: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        reference_offload: bool = False,
        value_head: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise UserError(f"policy.temperature must be positive, got {temperature}. For greedy answers use a greedy sampler.")
        if lora is not None and reference_offload:
            raise UserError("policy.reference_offload has no use with lora: the reference is the policy itself with its adapter off.")
        if lora is not None and value_head:
            raise UserError(
                "policy.value_head trains the policy's own trunk, which lora keeps as it is. Leave value_head out and give the algorithm a "
                "critic of its own: `critic: lit_align.models.ValueModel`."
            )
        self.path, self.temperature, self.chat_template = os.path.expandvars(path), temperature, chat_template
        self.dtype: DType = dtype
        self.template_options = template_options
        self.lora, self.attn_implementation, self.reference_offload = lora, attn_implementation, reference_offload
        self.tokenizer = load_tokenizer(OWNER, self.path, chat_template)
        check_options(OWNER, "template_options", self.tokenizer, template_options)
        self.model = load_causal(OWNER, self.path, dtype, attn_implementation)
        self.model.train()  # from_pretrained gives eval mode, in which a configured dropout would do nothing
        accepted = inspect.signature(self.model.forward).parameters
        if not set(CACHES) & set(accepted):
            names = " or ".join(f"`{name}`" for name in CACHES)
            raise UserError(f"{type(self.model).__name__} takes no {names}: models that don't go on from a cache aren't supported.")
        self._reader = ResponseReader(self.model)
        self._vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self.bos_id = self.tokenizer.bos_token_id
        self.eos_ids = self._find_eos_ids()
        added = self.tokenizer.added_tokens_decoder.items()
        self.special_ids = frozenset(self.tokenizer.all_special_ids) | {i for i, token in added if token.special}
        self.pad_id = self._find_pad_id()
        self.context_length = context_of(self.model.config.get_text_config())
        self._way: type[RowCache] | None = None
        self._value_head = new_value_head(self.model) if value_head else None
        if lora is not None:
            checkpoint_adapter_only(self, frozenset(f"model.{name}" for name in add_adapter(self.model, lora)))
        if gradient_checkpointing:
            checkpoint_activations(self.model)

    @property
    def value_head(self) -> nn.Module | None:
        """See `Policy.value_head`."""
        return self._value_head

    def forward(self, batch: AlignmentBatch | Rollouts, vocabulary: bool = False, entropy: bool = False) -> PolicyOutput:
        """See `Policy.forward`; in one of the layouts that `choose_layouts` found, else in padded rows. 0 outside the response."""
        texts = Texts.of(batch)

        def say(logits: Tensor, tokens: Tensor) -> list[Tensor]:
            found = [token_logps(logits, tokens, self.temperature)]
            found += [token_entropy(logits, self.temperature)] if entropy else []
            return found + ([vocabulary_logps(logits, self.temperature)] if vocabulary else [])

        said, hidden = self._reader.read(texts, say, self.layouts or UNPROBED)
        said = [texts.placed(values) for values in said]
        return PolicyOutput(
            token_logps=said[0],
            entropy=said[1] if entropy else None,
            vocabulary_logps=said[-1] if vocabulary else None,
            values=None if self._value_head is None else texts.placed(read_values(self._value_head, hidden)),
        )

    def choose_layouts(self) -> None:
        """See `Policy.choose_layouts`.

        Raises:
            UserError: if the model does not say of padded rows what it says of single texts.
        """
        found = probe(self.model, self.context_length)
        if not set(self.layouts) <= set(found) or not self.layouts:
            self.layouts = found
            rank_zero_info(describe(self.model, found))

    def next_token_logits(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """See `Policy.next_token_logits`; the cache is a `RowCache`."""
        if cache is None:
            cache = standing_way(self.way, self.model)(self.model)
        logits = cache.read(tokens, mask).float()
        return (logits if self.temperature == 1 else logits / self.temperature), cache

    @property
    def way(self) -> type[RowCache]:
        """How the model is read token by token; found out, and logged, when it is first asked for, or by another name in ``decoding``."""
        if self._way is None or self._way.__name__ != self.decoding:
            with self.inference(), torch.autocast(next(self.parameters()).device.type, enabled=False):
                reserved = self.special_ids | self.eos_ids | {self.pad_id}
                choose = partial(chosen_way, self.model, reserved, self.context_length, earlier=self.decoding)
                way, because = choose(way_to_try(self.model))
                if way is not standing_way(way, self.model):  # its steps could not be recorded
                    way, because = choose(way_to_try(self.model))
            self._way, self.decoding = way, way.__name__
            rank_zero_info(because)
        return self._way

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; BOS once, no trailing EOS, never empty."""
        if isinstance(prompt.content, str):
            tokens = self._read(prompt.content)
            if len(tokens) > 1 and tokens[-1] == self.tokenizer.eos_token_id:
                tokens.pop()  # some tokenizers end every text with EOS
        else:
            rendered = render(OWNER, self.tokenizer, prompt.content, answer=True, options=self.template_options)
            tokens = list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return self._embedded(tokens or [min(self.eos_ids) if self.bos_id is None else self.bos_id])

    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of an answer: after messages, see `encode_turns`; after a text, ended by EOS and tokenised together with the
        prompt where that leaves the prompt's own tokens as they are, so that a word boundary between them is what the model knows."""
        if not isinstance(prompt.content, str):
            return self.encode_turns(prompt, [{"role": "assistant", "content": text}])[0]
        end = self._end
        tokens = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if prompt.content:
            start = self.encode(prompt)
            joint = self._read(prompt.content + text)
            if joint[: len(start)] == start:
                tokens = joint[len(start) :]
        while tokens[-1:] == [end]:  # in the text, or added by the tokenizer, or both
            tokens.pop()
        return self._embedded([*tokens, end])

    def encode_turns(self, prompt: Prompt, turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """What the chat template makes of the turns; see `TurnEncoder`."""
        if isinstance(prompt.content, str):
            raise UserError(
                f"policy: the answer to the text {prompt.content[:60]!r} is a list of {len(turns)} messages. Give the prompt as messages "
                "too: `chat: true` of the prompt source makes them."
            )
        encoder = TurnEncoder(OWNER, self.tokenizer, self.template_options, self.eos_ids, self.special_ids, self._end)
        tokens, learnt = encoder.encode(prompt.content, turns)
        return self._embedded(tokens), learnt

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of response tokens, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def make_reference(self) -> Reference:
        """The policy with its adapter off or, where the whole model is trained, loaded again from ``path``."""
        if self.lora is not None:
            return AdapterOffReference(self)
        copy = self._loaded_again(self.dtype)
        copy.layouts = self.layouts  # so that both round alike
        return FrozenReference(copy, offload=self.reference_offload)

    def rounded(self, copy: Policy | None = None) -> "CausalPolicy":
        """See `Policy.rounded`. It is read in the way that was found for the policy itself, in float32: a probe of rounded weights
        could not tell rounding from a slightly misread text."""
        if narrow := {str(p.dtype).removeprefix("torch.") for p in self.model.parameters()} - {"float32"}:
            raise UserError(
                f"policy: its weights are {' and '.join(sorted(narrow))} already, so there is nothing to gain from a copy in bfloat16. "
                "Sample with lit_align.generation.CacheSampler, or train float32 weights: `policy.dtype: float32` and, of the Trainer, no "
                "`precision: bf16-true`."
            )
        way = self.way
        if not isinstance(copy, CausalPolicy):
            copy = self._loaded_again("bfloat16").eval().requires_grad_(False)
        copy.to(next(self.model.parameters()).device)
        merge_into(copy.model, self.model)
        copy.temperature, copy.eos_ids = self.temperature, self.eos_ids
        copy._way, copy.decoding = way, self.decoding
        return copy

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Policy.weights`. A model whose layers are other ones in memory than in its files is converted as a whole."""
        named = merged_weights(self.model)
        if get_model_conversion_mapping(self.model, add_legacy=False):
            return iter(revert_weight_conversion(self.model, dict(named)).items())
        return named

    def save(self, folder: str) -> None:
        """Write a Hugging Face folder that ``CausalPolicy(folder)`` and ``from_pretrained`` read; an adapter is merged into the
        weights, in their dtype, of a copy loaded from ``path`` to the CPU."""
        model = self.model
        if self.lora is not None:
            model = load_causal(OWNER, self.path, self.dtype)
            merge_into(model, self.model)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _loaded_again(self, dtype: DType) -> "CausalPolicy":
        """All of the model as it was before training, without an adapter."""
        return CausalPolicy(
            self.path, self.temperature, dtype, self.chat_template, self.template_options, attn_implementation=self.attn_implementation
        )

    @property
    def _end(self) -> int:
        """What ends an answer."""
        end = self.tokenizer.eos_token_id
        return end if end in self.eos_ids else min(self.eos_ids)

    def _read(self, text: str) -> list[int]:
        """Token ids of a plain text. BOS once: data that were rendered for a model begin with the one that the tokenizer adds."""
        tokens = list(self.tokenizer(text)["input_ids"])
        return tokens[1:] if tokens[:2] == [self.bos_id, self.bos_id] else tokens

    def _find_eos_ids(self) -> frozenset[int]:
        """Every id that ends a response: of the generation config, the model config and the tokenizer."""
        generation = self.model.generation_config
        sources = [generation and generation.eos_token_id, self.model.config.eos_token_id, self.tokenizer.eos_token_id]
        found = {i for source in sources if source is not None for i in (source if isinstance(source, list) else [source])}
        embedded = frozenset(i for i in found if i < self._vocabulary)  # others are never drawn
        if not embedded:
            raise UserError(
                f"Of the {self._vocabulary} tokens that the model embeds, neither the tokenizer nor the configs of {self.path!r} name an "
                "end-of-sequence token, so no response could end. Set `eos_token_id` in its generation_config.json."
            )
        return embedded

    def _find_pad_id(self) -> int:
        """What stands where the mask is False. A pad token that was added to the tokenizer alone has no embedding, and padding is
        read by nobody: an end of sequence serves, and nothing has to be resized."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self._vocabulary else min(self.eos_ids)

    def _embedded(self, tokens: list[int]) -> list[int]:
        """The same tokens, all of which the model knows."""
        if max(tokens) >= self._vocabulary:
            said = self.tokenizer.decode([max(tokens)])
            raise UserError(
                f"The tokenizer of {self.path!r} reads {said!r} as token {max(tokens)}, but the model embeds only {self._vocabulary}. "
                "Take it out of the text, or resize the model's embeddings and save it."
            )
        return tokens
