"""A language model that expects a reward before every token, beside the policy."""

import os
from typing import Any, final

from torch import Tensor, nn

from lit_align.models.layouts import Texts, rows_plan
from lit_align.models.loading import DType, checkpoint_activations, load_scorer, load_tokenizer
from lit_align.models.policy import CausalPolicy
from lit_align.models.value_head import read_values
from lit_align.types import AlignmentBatch, Critic, Policy, UserError

OWNER = "critic"  # in messages


@final
class ValueModel(Critic):
    """The trunk of a reward model, or of any causal language model, under a head that reads one number at every token.

    From a reward model trunk and head are taken: what it would score an answer that ended here is where the critic begins. From a
    language model the trunk is taken, and the head is new. Where the policy is trained by LoRA, this is still trained whole.

    Args:
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub, whose tokenizer is the policy's; ``$VARIABLES``
            are expanded.
        dtype: of the weights.
        gradient_checkpointing: in training forwards keep only each layer's input, and compute the rest again for the gradient.
        seed: of a new head.

    Raises:
        UserError: if there is no such model, it has several logits, more than its head is missing, or it reads a row as a whole, as
            encoders do.
    """

    def __init__(self, path: str, dtype: DType = "float32", gradient_checkpointing: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.path = os.path.expandvars(path)
        self.vocabulary: dict[str, int] = load_tokenizer(OWNER, self.path).get_vocab()
        model = load_scorer(OWNER, self.path, dtype, seed)
        if gradient_checkpointing:
            checkpoint_activations(model)
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"{OWNER}: {type(model).__name__} at {self.path!r} has no linear head on a causal trunk, so it can't say what is expected "
                "before each token. Give a reward model made of a causal language model, or such a language model."
            )
        self.trunk: Any = model.base_model  # these two and not the classifier, which would look for the end of each row
        self.head = head
        self.trunk.config.get_text_config().use_cache = False  # nothing is generated
        self.train()  # from_pretrained gives eval mode, in which a configured dropout would do nothing

    def forward(self, batch: AlignmentBatch) -> Tensor:
        """See `Critic.forward`."""
        texts = Texts.of(batch)
        asked = int(texts.response_mask.sum())
        plan = rows_plan(texts if asked else texts.with_one())
        hidden = self.trunk(input_ids=plan.tokens).last_hidden_state.flatten(0, 1)[plan.predicting]
        return texts.placed(read_values(self.head, hidden)[:asked])

    def check(self, policy: Policy) -> None:
        """See `Critic.check`."""
        if isinstance(policy, CausalPolicy) and policy.tokenizer.get_vocab() != self.vocabulary:
            raise UserError(
                f"{OWNER} reads the policy's tokens, but the tokenizer of {self.path!r} is another one than the policy's. Give a critic "
                "that was made of the same model: a reward model that was trained from it, or the policy's own folder."
            )


def new_critic(policy: Policy) -> ValueModel:
    """The trunk that the policy began with, under a new head, in float32: it is trained whole, also beside an adapter.

    Raises:
        UserError: if it is not known where the policy came from.
    """
    if not isinstance(policy, CausalPolicy):
        raise UserError(f"A critic is made of the folder of a CausalPolicy, not of {type(policy).__name__}: give one, by `critic`.")
    return ValueModel(policy.path)
