"""``lit-align judge``: whose answers a judge likes better, and how sure one can be of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_align.cli.asking import LEDGER, asking
from lit_align.cli.parts import read_parts
from lit_align.cli.runs import refuse_existing
from lit_align.cli.sampling import add_sampling_options, refuse_ignored, sampling_of
from lit_align.cli.sources import content_of, file_of, generated_answers, prompts_for, slug, stored_answers, write_rows
from lit_align.evaluation.answers import Answers, Matches, matched
from lit_align.evaluation.judging import Verdicts, judged
from lit_align.evaluation.report import reported
from lit_align.types import Sampler, UserError

DESCRIPTION = """\
Compare answers: two sides by win rate (as it is, at equal length, by length), more of them by Bradley-Terry ratings too.
A SOURCE is FILE.jsonl with stored samples, FILE.jsonl:COLUMN with a dataset's answers, or a model that answers now: a folder or
hub name, a run's folder, or one of a run's checkpoints."""


def judge(arguments: Sequence[str]) -> None:
    """Compare, print the report and write it beside the answers and verdicts.

    Args:
        arguments: sources and options; see ``--help``.

    Raises:
        UserError: if there are fewer than two sources, one has no answers, or the judge has no verdict on them.
    """
    options = judge_parser().parse_args(list(arguments))
    sources, output = options.sources, options.output
    if len(sources) < 2 or len({*sources}) < len(sources):
        raise UserError(f"Expected at least two different sources to compare, got {' '.join(sources)}. Name another run, model or file.")
    if options.responses < 1:
        raise UserError(f"--responses should be at least 1, got {options.responses}.")
    refuse_existing(output, LEDGER, "samples")
    parts = read_parts(options.config)
    models = [source for source in sources if file_of(source) is None]
    if not models:
        refuse_ignored(options, "prompts", "chat")
    sides = {source: stored_answers(source) for source in sources if source not in models} | _generated(models, options, parts.sampler)
    ordered = [sides[source] for source in sources]
    matches = matched(ordered)
    _say_what_is_left_out(ordered, matches)

    with asking([parts.judge], output, parts.prices):
        verdicts = judged(parts.judge, matches, soft=options.soft)
    identity = parts.judge.identity or type(parts.judge).__name__
    its_own = [side.name for side in ordered if side.trained_for and side.trained_for == identity]
    report = reported(verdicts, identity, soft=options.soft, trained_for_judge=its_own, seed=options.seed)
    write_rows(output / "verdicts.jsonl", _rows(matches, verdicts))
    (output / "report.json").write_text(report.json, encoding="utf-8")
    (output / "report.md").write_text(report.markdown, encoding="utf-8")
    print(report.markdown)
    print(f"Numbers, answers and every verdict are in {output}.")


def judge_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align judge`` takes."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lit-align judge", description=DESCRIPTION, add_help=add_help, formatter_class=raw)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="two or more; the win rate is the first one's")
    parser.add_argument("--config", action="append", default=[], help="file that sets the judge, data.init_args.annotator; several compose")
    parser.add_argument(
        "--prompts", help="JSONL file of what models answer; a file among the sources, or a run's eval_prompts, if not given"
    )
    parser.add_argument("--chat", action="store_true", help="make messages of prompts that are texts")
    parser.add_argument("--responses", type=int, default=1, help="answers of a model to each prompt; the k-th meets the k-th")
    parser.add_argument("--soft", action="store_true", help="count probabilities of a judge that compares, not who is above 1/2")
    add_sampling_options(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/judged"), help="folder to write; runs/judged if not given")
    return parser


def _generated(models: Sequence[str], options: argparse.Namespace, sampler: Sampler | None) -> dict[str, Answers]:
    if not models:
        return {}
    sampling, found = sampling_of(options, sampler, options.sources), {}
    prompts = prompts_for(options.prompts, options.chat, options.sources)
    for source in models:
        file = options.output / "samples" / f"{slug(source)}.jsonl"
        found[source] = generated_answers(source, prompts, options.responses, sampling, file)
    return found


def _say_what_is_left_out(sides: Sequence[Answers], matches: Matches) -> None:
    kept = len({*zip(matches.about, map(id, matches.prompts), strict=True)})
    for side in sides:
        if len(side.prompts) > kept:
            print(f"{len(side.prompts) - kept} of {len(side.prompts)} prompts of {side.name} are not answered by all others, and left out.")


def _rows(matches: Matches, verdicts: Verdicts) -> list[dict[str, object]]:
    """One per match: the prompt, what every side said, and P(i beats j), null where there is no verdict."""
    rows = []
    for prompt, texts, wins in zip(matches.prompts, matches.texts, verdicts.wins.tolist(), strict=True):
        said = dict(zip(matches.names, texts, strict=True))
        rows.append({"prompt": content_of(prompt), "answers": said, "wins": [[None if p != p else p for p in row] for row in wins]})
    return rows
