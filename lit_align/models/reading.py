"""What a language model says of the responses of a batch, in the cheapest layout that was found to be exact for it."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple, final

from torch import Tensor
from transformers import DynamicCache

from lit_align.models.head import CHUNK_ABOVE, Say, in_chunks, picking
from lit_align.models.layouts import Plan, Texts, prefix_plan, rows_plan
from lit_align.models.positions import context_of
from lit_align.models.trees import Lengths, Packing, packed, rooms, tree_mask, tree_plan

LAYOUTS = ("rows", "prefix", "tree")  # from the one that no model mistakes to the one that asks most of it
PICKED, CHUNKED = "picked head", "chunked head"
UNPROBED = ("rows", PICKED)  # what is taken where nothing was tried


@final
class Layout(NamedTuple):
    """One of `LAYOUTS`; of trees, where in their rows everything is."""

    name: str
    packing: Packing | None = None

    def plan(self, texts: Texts) -> Plan:
        """The rows of a forward."""
        if self.packing is not None:
            return tree_plan(texts, self.packing)
        return rows_plan(texts) if self.name == "rows" else prefix_plan(texts)

    def cost(self, lengths: Lengths, hidden_size: int) -> float:
        """In slots. A slot costs the 12 H^2 multiplications of a transformer layer of width H, a pair of tokens that may attend 2 H, so one
        slot is worth 6 H pairs. Padding is counted as what it costs."""
        responses = [r for _, group in lengths for r in group]
        longest = max(prompt for prompt, _ in lengths)
        if self.packing is not None:
            blocks = [(self.packing.rows, self.packing.width, self.packing.width)]
        elif self.name == "rows":
            width = max(prompt + max(group) for prompt, group in lengths) - 1
            blocks = [(len(responses), width, width)]
        else:
            before, width = longest - 1, max(responses)
            blocks = [(len(lengths), before, before), (len(responses), width, before + width)]
        return sum(rows * queries * (1 + keys / (6 * hidden_size)) for rows, queries, keys in blocks)


def cheapest(lengths: Lengths, allowed: Sequence[str], hidden_size: int, context_length: int | None = None) -> Layout:
    """The layout that costs least, the first of equals; a function of lengths, width and context alone, never of time or memory.

    No row has more slots than the context, where that is known, unless a text alone has.
    """
    layouts = [Layout("rows")] if "rows" in allowed else []
    prompt, response, most = (max(sizes) for sizes in zip(*((p, max(group), len(group)) for p, group in lengths), strict=True))
    fits = context_length is None or prompt - 1 + response <= context_length  # the longest of either may not be of one text
    if "prefix" in allowed and most > 1 and prompt > 1 and fits:
        layouts.append(Layout("prefix"))
    if "tree" in allowed:
        layouts += [Layout("tree", packed(lengths, room)) for room in rooms(lengths, context_length)]
    return min(layouts, key=lambda layout: layout.cost(lengths, hidden_size), default=Layout("rows"))


@final
class ResponseReader:
    """Reads responses by a Hugging Face causal language model.

    Args:
        model: called as a whole only, so that whatever gathers sharded weights hooks into it.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def read(
        self, texts: Texts, say: Say, choice: Sequence[str] = UNPROBED, chunk_above: int = CHUNK_ABOVE
    ) -> tuple[Sequence[Tensor], Tensor]:
        """What ``say`` keeps of the logits at each response token, ``[M, ...]``, and what the head read, ``[M, H]``.

        Args:
            texts: prompts and responses.
            say: a function of logits and tokens.
            choice: names of `LAYOUTS` that may be taken, and what may be done to the head: `PICKED`, `CHUNKED`.
            chunk_above: how many logits are computed at once, at most, where the head may be chunked.
        """
        if not texts.response_mask.any():
            said, hidden = self.read(texts.with_one(), say, choice, chunk_above)
            return [values[:0] for values in said], hidden[:0]
        config = self.model.config.get_text_config()
        plan = cheapest(texts.lengths, choice, config.hidden_size, context_of(config)).plan(texts)
        tokens = texts.response_tokens[texts.response_mask]  # [M]
        cache = None if plan.prefix is None else self._cache(plan.prefix, plan.owners)
        if PICKED not in choice:
            output = self._forward(plan, cache, output_hidden_states=True)
            logits, hidden = (x.flatten(0, 1)[plan.predicting] for x in (output.logits, output.hidden_states[-1]))
            return say(logits, tokens), hidden
        chunked = CHUNKED in choice and len(tokens) * config.vocab_size > chunk_above
        with picking(self.model, plan.predicting, first_only=chunked) as picked:
            logits = self._forward(plan, cache).logits.squeeze(0)  # whose gradient is a view, as that of [0] is not
        assert picked.hidden is not None
        if chunked:
            return in_chunks(self.model, picked.hidden, tokens, say, max(chunk_above // config.vocab_size, 1)), picked.hidden
        return say(logits, tokens), picked.hidden

    def _cache(self, prefix: Plan, owners: Any) -> DynamicCache:
        """Of the prefix, its row ``owners[n]`` for every row n; with gradient."""
        cache = DynamicCache(config=self.model.config)
        with picking(self.model, prefix.predicting):
            self._forward(prefix, cache)
        cache.reorder_cache(owners)
        return cache

    def _forward(self, plan: Plan, cache: DynamicCache | None, **options: Any) -> Any:
        """The model's own output for the rows of a plan."""
        if self._takes_positions and plan.positions is not None:
            options["position_ids"] = plan.positions
        if plan.trees is not None:
            options["attention_mask"] = tree_mask(self.model, plan)
        elif plan.mask is not None:
            options["attention_mask"] = plan.mask.long()
        if cache is not None:
            options["past_key_values"] = cache
        return self.model(input_ids=plan.tokens, use_cache=cache is not None, **options)
