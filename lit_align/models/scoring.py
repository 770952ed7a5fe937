"""How a sequence classifier reads a prompt with a response and scores it: the same while it is trained and when it annotates."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lit_align.models.chat import render
from lit_align.types import Message, Prompt, UserError


def row_of(owner: str, tokenizer: Any, prompt: Prompt, answer: str | Sequence[Message]) -> list[int]:
    """Token ids of prompt and response as one row: of a plain text, both tokenised together; of messages, the chat with the
    response as the assistant's turn, or as the turns that it is. Nothing is added that tokenizer and template don't add.

    Raises:
        UserError: if messages follow a text, have no template, or it refuses them.
    """
    if isinstance(prompt.content, str):
        if not isinstance(answer, str):
            raise UserError(
                f"{owner}: the answer to the text {prompt.content[:60]!r} is a list of {len(answer)} messages. Give the prompt as messages "
                "too: `chat: true` of the prompt source makes them."
            )
        return list(tokenizer(prompt.content + answer)["input_ids"])
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    chat = render(owner, tokenizer, [*prompt.content, *turns], answer=False)
    return list(tokenizer(chat, add_special_tokens=False)["input_ids"])  # the template writes its own


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
