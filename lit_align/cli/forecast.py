"""What a run will ask for, told from its settings and from what one micro-batch has cost."""

import warnings

from lit_align.cli.trainer import AlignmentCLI
from lit_align.data import AlignmentDataModule, SamplingDataModule


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
    rollouts, each = planned["max_epochs"], (prompts + extra) * k
    if rollouts is None or rollouts < 0:
        lines.append(f"Labels: {'at most ' if extra else ''}{each:,} in every rollout, and no end: set trainer.max_epochs.")
        return [*lines, *_prices(data, labelled, each, "a rollout")]
    read = f"({prompts} + {extra} extra)" if extra else prompts
    lines.append(f"Labels: at most {rollouts * each:,} ({rollouts:,} rollouts x {read} prompts x {k} responses).")
    return [*lines, *_prices(data, labelled, rollouts * each, "the run"), *_limit(data, labelled, each, rollouts)]


def _prices(data: AlignmentDataModule, labelled: int, labels: int, what: str) -> list[str]:
    """What ``labels`` labels cost if each costs what one of the ``labelled`` ones did; nothing where nobody charges."""
    if not isinstance(data, SamplingDataModule) or not (spent := data.spent).calls:
        return []
    share = labels / labelled
    calls, read, written = (f"{number * share:,.0f}" for number in (spent.calls, spent.prompt_tokens, spent.completion_tokens))
    money = "unknown, for want of data.init_args.prices" if spent.unpriced else f"{spent.money * share:,.2f}"
    return [f"Cost of {what}: about {calls} calls, {read} tokens read, {written} written; price: {money}."]


def _limit(data: AlignmentDataModule, labelled: int, each: int, rollouts: int) -> list[str]:
    """How far the budget goes, where that is less than the whole run."""
    if not isinstance(data, SamplingDataModule) or data.budget is None or not labelled:
        return []
    budget, spent = data.budget, data.spent
    per_label = {
        "labels": (budget.labels, 1.0),
        "tokens": (budget.tokens, spent.tokens / labelled),
        "money": (budget.money, spent.money / labelled),
    }
    reach = {name: int(limit / (cost * each)) for name, (limit, cost) in per_label.items() if limit is not None and cost}
    name = min(reach, key=reach.__getitem__, default="")
    return [f"The budget of {name} ends it after about {reach[name]:,} rollouts."] if reach and reach[name] < rollouts else []
