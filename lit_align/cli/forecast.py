"""What a run will ask for, told from its settings and from what one micro-batch has cost."""

import warnings
from typing import Any

from lit_align.cli.trainer import AlignmentCLI
from lit_align.data import Budget, MixedDataModule
from lit_align.data.spend import Spend


def forecast(cli: AlignmentCLI, labelled: int) -> list[str]:
    """Prompts, labels and their price, a line each.

    Args:
        cli: after its rehearsal.
        labelled: responses that were annotated in it.
    """
    data, planned = cli.datamodule, cli.planned
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has been said
        lines = [f"Prompts: {data.pool_of(data.prompts, data.response_room).summary()}"]
    prompts, k, extra = planned["prompts_per_rollout"], planned.get("responses_per_prompt", 0), planned.get("max_extra_prompts", 0)
    if not k:
        return [*lines, "Labels: none, this algorithm samples nothing."]
    share, rollouts, each = planned.get("fresh_annotated", 1.0), planned["max_epochs"], (prompts + extra) * k
    if isinstance(data, MixedDataModule) and (passes := planned["fixed_passes"]) is not None:
        rollouts = data.rollouts_of(passes, prompts)
    if not share:
        return [*lines, "Labels: none, no row is annotated."]
    if rollouts is None or rollouts < 0:
        lines.append(f"Labels: {'at most ' if extra or share < 1 else ''}{each:,} in every rollout, and no end: set trainer.max_epochs.")
        return [*lines, *_prices(data, labelled, each * share, "a rollout")]
    read, labels = f"({prompts} + {extra} extra)" if extra else prompts, rollouts * each * share
    how = f"{rollouts:,} rollouts x {read} prompts x {k} responses"
    if share < 1:
        lines.append(f"Labels: about {labels:,.0f} ({how}, of which a share of {share:g} is drawn and annotated).")
    else:
        lines.append(f"Labels: at most {labels:,.0f} ({how}).")
    return [*lines, *_prices(data, labelled, labels, "the run"), *_limit(data.budget, data.spent, labelled, each * share, rollouts)]


def _prices(data: Any, labelled: int, labels: float, what: str) -> list[str]:
    """What ``labels`` labels cost if each costs what one of the ``labelled`` ones did; nothing where nobody charges."""
    spent: Spend = data.spent
    if not spent.calls or not labelled:
        return []
    share = labels / labelled
    calls, read, written = (f"{number * share:,.0f}" for number in (spent.calls, spent.prompt_tokens, spent.completion_tokens))
    money = "unknown, for want of data.init_args.prices" if spent.unpriced else f"{spent.money * share:,.2f}"
    return [f"Cost of {what}: about {calls} calls, {read} tokens read, {written} written; price: {money}."]


def _limit(budget: Budget | None, spent: Spend, labelled: int, each: float, rollouts: int) -> list[str]:
    """How far the budget goes, where that is less than the whole run."""
    if budget is None:
        return []
    per_label = {
        "labels": (budget.labels, 1.0),
        "tokens": (budget.tokens, spent.tokens / max(labelled, 1)),
        "money": (budget.money, spent.money / max(labelled, 1)),
    }
    reach = {name: int(limit / (cost * each)) for name, (limit, cost) in per_label.items() if limit is not None and cost}
    name = min(reach, key=reach.__getitem__, default="")
    return [f"The budget of {name} ends it after about {reach[name]:,} rollouts."] if reach and reach[name] < rollouts else []
