"""How a sequence classifier reads a prompt with a response and scores it: the same while it is trained and when it annotates."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from lit_align.models.chat import render
from lit_align.models.escaping import Escape, special_strings
from lit_align.types import Message, Prompt, UserError


def row_of(owner: str, tokenizer: Any, prompt: Prompt, answer: str | Sequence[Message]) -> list[int]:
    """Token ids of prompt and response as one row: of a plain text, both tokenised together; of messages, the chat with the
    response as the assistant's turn, or as the turns that it is. Nothing is added that tokenizer and template don't add.

    A response is data: where it spells a special token, that gets a backslash (`Escape`) and is read as text, and so are messages, whose
    special tokens are exactly those of the template. A plain prompt is read as it is.

    Raises:
        UserError: if messages follow a text, have no template, or it refuses them.
    """
    escape = _escape(tokenizer)
    if isinstance(prompt.content, str):
        if not isinstance(answer, str):
            raise UserError(
                f"{owner}: the answer to the text {prompt.content[:60]!r} is a list of {len(answer)} messages. Give the prompt as messages "
                "too: `chat: true` of the prompt source makes them."
            )
        return list(tokenizer(escape.after(prompt.content, answer))["input_ids"])
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    said = [{**message, "content": escape(message["content"])} for message in [*prompt.content, *turns]]
    chat = render(owner, tokenizer, said, answer=False)
    return list(tokenizer(chat, add_special_tokens=False)["input_ids"])  # the template writes its own


@lru_cache(maxsize=8)
def _escape(tokenizer: Any) -> Escape:
    return Escape(tokens=special_strings(tokenizer))


def last_logits(model: Any, tokens: Tensor, mask: Tensor, pad_id: int | None) -> Tensor:
    """Logits of every row ``[N, labels]``, of a causal model those at its last token; neither padding nor neighbours change them.

    Args:
        model: a Hugging Face sequence classifier.
        tokens: padded on the right with anything, ``[N, S]``: positions start at 0 and a causal model never sees the padding.
        mask: bool, no row empty, ``[N, S]``.
        pad_id: the tokenizer's pad token: encoders such as RoBERTa also count positions by it.
    """
    # Classifiers find the last token by comparing with `pad_token_id`, so the id that pads must be none of these rows, as EOS often is.
    pad = _absent(tokens[mask], pad_id)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    return model(input_ids=tokens.where(mask, pad), attention_mask=mask.long()).logits


def _absent(present: Tensor, pad_id: int | None) -> int:
    """``pad_id``, unless it is present: then the first id that isn't."""
    known = set(present.unique().tolist())
    if pad_id is not None and pad_id not in known:
        return pad_id
    return next(i for i in range(len(known) + 1) if i not in known)
