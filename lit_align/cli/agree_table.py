"""What ``lit-align agree`` prints."""

from collections.abc import Iterator, Mapping

from lit_align.evaluation.agreement import AgreementReport, Comparison, Estimate

WORDS = {
    "agreement": "agreement",
    "kappa": "Cohen's kappa",
    "agreement_without_ties": "agreement, neither says tie",
    "kappa_without_ties": "Cohen's kappa, neither says tie",
    "human_ties": "people say tie",
    "ai_ties": "the judge says tie",
    "human_agreement": "two people agree",
    "accuracy_given": "right in the given order",
    "accuracy_swapped": "right in the swapped order",
    "consistency": "same choice in both orders",
    "first_place": "chooses what is shown first",
    "accuracy_chosen_first": "right, people's choice shown first",
    "accuracy_chosen_second": "right, people's choice shown second",
    "ai_longer": "the judge takes the longer",
    "human_longer": "people take the longer",
    "longer_when_wrong": "the judge takes the longer, when wrong",
    "verbosity_bias": "verbosity bias",
    "calibration_error": "calibration error",
}
IN_SUBSETS = ("agreement", "kappa", "agreement_without_ties", "kappa_without_ties")


def report_lines(name: str, whole: AgreementReport, subsets: Mapping[str, AgreementReport], column: str | None) -> Iterator[str]:
    """Everything about all pairs, the main numbers of every subset."""
    yield f"{name}: {whole.pairs} pairs of {whole.prompts} prompts."
    if whole.unlabelled or whole.unjudged:
        yield f"Left out: {whole.unlabelled} pairs without a human label, {whole.unjudged} others without a verdict of the judge."
    width = max(len(WORDS[measure]) for measure in whole.measures)
    yield f"\n{'':{width}}   value   95 % interval       n"
    for measure, found in whole.measures.items():
        yield f"{WORDS[measure]:{width}}  {_value(found)}  {_interval(found):>16}  {found.n:>6}"
    if whole.reliability:
        yield "\nconfidence   pairs    mean   right"
        for one in whole.reliability:
            yield f"from {one.low:.2f}  {one.pairs:>7}  {one.confidence:6.3f}  {one.accuracy:6.3f}"
    if subsets:
        width = max(map(len, [*subsets, str(column)]))
        yield f"\n{column:{width}}   pairs  {'agreement':^22}  {'kappa':^22}  {'agreement, no tie':^22}  {'kappa, no tie':^22}"
        for subset, report in subsets.items():
            cells = [f"{_value(report.measures[key])} {_interval(report.measures[key]):>15}" for key in IN_SUBSETS]
            yield f"{subset:{width}}  {report.pairs:>6}  {'  '.join(cells)}"
    yield ""


def comparison_lines(name: str, rival: str, found: Comparison) -> Iterator[str]:
    """Which of two judges chose what people chose more often."""
    yield f"Pair by pair, on {found.n} pairs of {found.prompts} prompts where people made a choice (a judge's tie is half right):"
    rows = ((name, found.accuracy), (rival, found.against), ("difference", found.difference))
    width = max(len(label) for label, _ in rows)
    for label, one in rows:
        yield f"{label:{width}}  {_value(one)}  {_interval(one):>16}"
    yield f"The first was more right about {found.better} pairs, the second about {found.worse}; exact sign test: p = {found.p_value:.2g}"
    if found.prompts < found.n:
        yield "Several pairs share a prompt, so go by the interval: the test takes pairs for independent."


def _value(found: Estimate) -> str:
    return "     -" if found.value is None else f"{found.value:6.3f}"


def _interval(found: Estimate) -> str:
    return "-" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"
