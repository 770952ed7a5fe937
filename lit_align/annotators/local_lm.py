"""A language model in this process, asked how likely each of a few answers is."""

import inspect
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from lit_align.annotators.hosting import HostedModel
from lit_align.annotators.options import Tokens, exclusive_logps, suffixes
from lit_align.models.chat import check_options
from lit_align.models.escaping import Escape, control_strings
from lit_align.models.loading import DType, load_causal
from lit_align.types import JudgeBackend, Message, UserError


@final
class LocalLM(JudgeBackend):
    """A Hugging Face causal language model as a judge's backend.

    Each option is scored as the sequence of tokens that it adds to the prompt, so that "10" may be one token or two; what is
    read is exact, nothing is generated. Messages go through the model's chat template; a model without one reads their contents, joined
    by blank lines. What messages say is text: where it spells a special token, or what looks like one in the chat template, it gets a
    backslash (`Escape`), so that the special tokens of a prompt are exactly those that the template writes. A plain text is read as it is.

    Args:
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        max_tokens: longest prompt with its option; None is what the model can read. A longer one gets NaN.
        batch_size: rows of one forward pass, of similar length.
        dtype: of the weights; log-probs are float32 either way.
        chat_template: a Jinja file that takes the place of the tokenizer's own template.
        template_options: what else to tell the template, such as ``enable_thinking: false`` for a model that would think first.
        offload: on the device only while it is asked, in the CPU's memory otherwise.

    Attributes:
        too_long: prompts so far that did not fit.
        tokens_read: tokens so far of all prompts and options, padding not counted.

    Raises:
        UserError: at ``setup``, if there is no such model, or its template does not read all of ``template_options``; when
            asked, if the tokenizer can't tell two options apart.
    """

    def __init__(
        self,
        path: str,
        max_tokens: int | None = None,
        batch_size: int = 16,
        dtype: DType = "float32",
        chat_template: str | None = None,
        template_options: dict[str, Any] | None = None,
        offload: bool = False,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"LocalLM: max_tokens should be the longest prompt, at least 1, or null, got {max_tokens}.")
        self.identity, self.max_tokens, self.template_options = path, max_tokens, template_options
        self.host = HostedModel("LocalLM", path, partial(load_causal, "LocalLM"), dtype, chat_template, offload, batch_size)
        self.too_long = self.tokens_read = 0
        self._escape: Escape | None = None  # of the tokenizer that is loaded

    def setup(self, device: torch.device) -> None:
        """Load the model."""
        self.host.setup(device)
        check_options("LocalLM", "template_options", self.host.tokenizer, self.template_options)

    def close(self) -> None:
        """Forget the model."""
        self.host.close()
        self._escape = None

    def option_logps(self, prompts: Sequence[str | Sequence[Message]], options: Sequence[str]) -> Tensor:
        """See `JudgeBackend.option_logps`."""
        logps = torch.full((len(prompts), len(options)), torch.nan, dtype=torch.float32)
        limit = self.max_tokens or self.host.context_length
        asked = [self._tokens(prompt, options) for prompt in prompts]  # context, and what each option adds to it
        fits = [i for i, (context, added) in enumerate(asked) if limit is None or len(context) + max(map(len, added)) <= limit]
        self._count_too_long(len(prompts) - len(fits), limit)
        # A row reads the context and all but the last token of an option; it serves every option that begins like it.
        rows = [(i, stem) for i in fits for stem in _longest_stems(asked[i][1])]
        summed: dict[tuple[int, tuple[int, ...]], float] = {}
        with self.host.working() as model:
            for batch in self.host.batches([len(asked[i][0]) + len(stem) for i, stem in rows]):
                summed |= self._read(model, [rows[j] for j in batch], asked)
        for i in fits:
            added = asked[i][1]
            logps[i] = exclusive_logps([summed[i, tokens] for tokens in added], added)
        return logps

    def _read(self, model: Any, rows: Sequence[tuple[int, Tokens]], asked: Sequence[tuple[list[int], list[Tokens]]]) -> dict[Any, float]:
        """Log-prob of every option that these rows serve, by number of the prompt and tokens."""
        keep = 1 + max(len(stem) for _, stem in rows)
        token_logps = self._forward(model, [asked[i][0] + list(stem) for i, stem in rows], keep)  # [N, keep, V]
        served = [
            (row, i, added, keep - 1 - len(stem)) for row, (i, stem) in enumerate(rows) for added in asked[i][1] if _serves(stem, added)
        ]
        places = [(row, start + t, token) for row, _, added, start in served for t, token in enumerate(added)]
        values = iter(token_logps[tuple(torch.tensor(places, device=token_logps.device).T)].double().tolist())
        return {(i, added): sum(next(values) for _ in added) for _, i, added, _ in served}

    def _tokens(self, prompt: str | Sequence[Message], options: Sequence[str]) -> tuple[list[int], list[Tokens]]:
        """What the model reads first, and the tokens that each option adds to it."""
        tokenizer, special = self.host.tokenizer, isinstance(prompt, str) or self.host.tokenizer.chat_template is None
        if isinstance(prompt, str):
            text = prompt
        else:
            self._escape = self._escape or Escape(tokens=control_strings(tokenizer))
            said = [{**message, "content": self._escape(message["content"])} for message in prompt]
            if tokenizer.chat_template is None:
                text = "\n\n".join(message["content"] for message in said)
            else:
                text = self.host.render(said, answer=True, options=self.template_options)
        encoded = tokenizer([text, *(text + option for option in options)], add_special_tokens=special)["input_ids"]
        return suffixes(encoded[0], encoded[1:], options, tokenizer.bos_token_id, tokenizer.eos_token_id)

    def _forward(self, model: Any, rows: Sequence[list[int]], keep: int) -> Tensor:
        """Log-probs of the last ``keep`` positions' next tokens, ``[N, keep, V]``."""
        width, device = max(len(row) for row in rows), self.host.device
        tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows], dtype=torch.long, device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long, device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self.tokens_read += sum(map(len, rows))
        known = inspect.signature(model.forward).parameters
        options = {name: value for name, value in {"position_ids": positions, "logits_to_keep": keep}.items() if name in known}
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False, **options).logits
        return logits[:, -keep:].float().log_softmax(-1)

    def _count_too_long(self, count: int, limit: int | None) -> None:
        if count and not self.too_long:
            warnings.warn(
                f"LocalLM expected prompts of at most {limit} tokens, but {count} of a batch are longer. They get no verdict and the run "
                "goes on. Shorten prompts or responses, or raise max_tokens if the model can read more; later cases are counted in "
                "`too_long` and not shown.",
                stacklevel=3,
            )
        self.too_long += count


def _serves(stem: Tokens, added: Tokens) -> bool:
    """Whether a row that reads ``stem`` after the context predicts every token of this option."""
    return stem[: len(added) - 1] == added[:-1]


def _longest_stems(added: Sequence[Tokens]) -> list[Tokens]:
    """What has to be read after the context: options without their last token, without those that begin another one."""
    stems = sorted({tokens[:-1] for tokens in added})
    return [stem for stem in stems if not any(other != stem and other[: len(stem)] == stem for other in stems)]
