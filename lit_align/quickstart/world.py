"""The embedded world: letters to an advice column, answered by volunteers of very different care."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from lit_align.data.sources import prompt_id
from lit_align.quickstart.phrases import (
    CHEERS,
    FEELING_LINES,
    FEELINGS,
    NAMES,
    OFF_TOPIC,
    PROBLEMS,
    RUDE,
    SMALL_TALK,
)
from lit_align.types import Prompt, UserError

HELD_OUT_SHARE = 10  # one letter in so many
MOST_LETTERS = 20_000  # of some 29,000 that are held out, and nine times as many that are not


@dataclass(frozen=True, slots=True)
class Letter:
    """What a letter says, read from its text: which problem (its number), which feeling, and who signed."""

    problem: int
    feeling: str
    name: str


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A letter and one volunteer's answer.

    ``kinds`` names the sentences of the answer, in order: ``tip``, ``wrong tip``, ``feeling``, ``wrong feeling``, ``cheer``,
    ``rude`` or ``off topic``; ``greeted`` says whether it greets the one who signed.
    """

    prompt: Prompt
    response: str
    greeted: bool
    kinds: tuple[str, ...]


def read_letter(text: str) -> Letter:
    """The truth about a letter, from nothing but its text.

    Raises:
        UserError: if ``text`` is not a letter of this world.
    """
    problem = next((number for number, known in enumerate(PROBLEMS) if any(line in text for line in known.letters)), None)
    feeling = next((word for line, word in feeling_lines().items() if line in text), None)
    name = re.search(r"Yours, (\w+)\s*$", text)
    if problem is None or feeling is None or name is None:
        raise UserError(
            f"The quickstart's rules read only letters of its own world, got {text[:80]!r}. "
            "Use them with the prompts that write_world writes, or bring an annotator of your own."
        )
    return Letter(problem, feeling, name.group(1))


@cache
def feeling_lines() -> dict[str, str]:
    """Every way to name a feeling in a letter, with the feeling."""
    return {line.format(feeling): feeling for feeling in FEELINGS for line in FEELING_LINES}


def is_held_out(text: str) -> bool:
    """Whether a letter is kept for evaluation: a property of its text alone, so that no seed can mix the two sets."""
    return int.from_bytes(blake2b(text.strip().encode(), digest_size=8).digest()) % HELD_OUT_SHARE == 0


def prompts(seed: int, count: int, held_out: bool = False) -> list[Prompt]:
    """``count`` different letters, from the part that may be trained on or from the held-out tenth.

    Raises:
        UserError: if ``count`` is more than ``MOST_LETTERS``.
    """
    if count > MOST_LETTERS:
        raise UserError(f"The quickstart's world gives at most {MOST_LETTERS} different letters at once, {count} were asked for.")
    part = "held-out" if held_out else "train"
    letters = _different_letters(random.Random(f"letters {part} {seed}"), held_out)
    return [Prompt(id=prompt_id(f"quickstart {part} {seed}", row), content=text) for row, text in enumerate(islice(letters, count))]


def demonstrations(seed: int, count: int) -> list[Demonstration]:
    """``count`` letters that may be trained on, each with the answer of one volunteer.

    Less than half of the answers hold the right tip, or the right word for the feeling; others advise on somebody else's
    problem, chat, or are rude: there is something to align.
    """
    draw = random.Random(f"volunteers {seed}")
    return [_answer(draw, prompt) for prompt in prompts(seed, count)]


def write_world(
    folder: str | Path, seed: int, demonstration_count: int = 6000, prompt_count: int = 3000, eval_prompt_count: int = 512
) -> None:
    """Write ``demonstrations.jsonl`` (``prompt``, ``response``), ``prompts.jsonl`` and ``eval_prompts.jsonl`` (``prompt``).

    The held-out letters of ``eval_prompts.jsonl`` occur in neither of the others. The same seed writes the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"prompt": d.prompt.content, "response": d.response} for d in demonstrations(seed, demonstration_count))
    _write_rows(folder / "demonstrations.jsonl", rows)
    _write_rows(folder / "prompts.jsonl", ({"prompt": p.content} for p in prompts(seed + 1, prompt_count)))
    _write_rows(folder / "eval_prompts.jsonl", ({"prompt": p.content} for p in prompts(seed, eval_prompt_count, held_out=True)))


def _different_letters(draw: random.Random, held_out: bool) -> Iterator[str]:
    seen: set[str] = set()
    while True:
        text = _letter(draw)
        if text not in seen and is_held_out(text) == held_out:
            seen.add(text)
            yield text


def _letter(draw: random.Random) -> str:
    lines = [draw.choice(draw.choice(PROBLEMS).letters), draw.choice(FEELING_LINES).format(draw.choice(list(FEELINGS)))]
    if draw.random() < 0.7:
        lines.insert(draw.randrange(3), draw.choice(SMALL_TALK))
    return " ".join([*lines, f"Yours, {draw.choice(NAMES)}\n"])


def _answer(draw: random.Random, prompt: Prompt) -> Demonstration:
    letter = read_letter(str(prompt.content))
    body: list[tuple[str, str]] = []
    match draw.choices(("right", "wrong", "none"), (0.45, 0.2, 0.35))[0]:
        case "right":
            body.append(("feeling", draw.choice(FEELINGS[letter.feeling])))
        case "wrong":
            body.append(("wrong feeling", draw.choice(FEELINGS[draw.choice([f for f in FEELINGS if f != letter.feeling])])))
    if draw.random() < 0.12:
        body.append(("rude", draw.choice(RUDE)))
    match draw.choices(("right", "wrong", "none"), (0.45, 0.25, 0.3))[0]:
        case "right":
            body.append(("tip", draw.choice(PROBLEMS[letter.problem].tips)))
        case "wrong":
            other = draw.choice([number for number in range(len(PROBLEMS)) if number != letter.problem])
            body.append(("wrong tip", draw.choice(PROBLEMS[other].tips)))
    if not body or draw.random() < 0.3:
        body.insert(draw.randint(0, len(body)), ("off topic", draw.choice(OFF_TOPIC)))
    cheers = draw.choices((0, 1, 2, 3), (0.5, 0.3, 0.15, 0.05))[0]
    body += [("cheer", cheer) for cheer in draw.sample(CHEERS, cheers)]
    greeted = draw.random() < 0.9
    name = letter.name if greeted else draw.choice([name for name in NAMES if name != letter.name])
    response = " ".join([f"Dear {name},", *(sentence for _, sentence in body)])
    return Demonstration(prompt, response, greeted, tuple(kind for kind, _ in body))


def _write_rows(path: Path, rows: Iterator[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
