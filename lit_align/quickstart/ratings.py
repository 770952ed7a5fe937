"""What a tired rater says of an answer: the noisy labels that a reward model of the embedded world is trained on."""

import random
from collections.abc import Sequence

from lit_align.quickstart.rules import EACH_TIME, ONCE, prompt_text, sentence_kinds
from lit_align.quickstart.world import Letter, read_letter
from lit_align.types import Prompt

LOOKS_AT_THE_LETTER = 0.75
MOOD = 1.0  # standard deviation, in units of the gold score
CHARMED = 0.2  # by each exclamation mark


def tired_rating(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """The gold score as somebody tired would give it.

    He knows what a tip, a word about a feeling, a rude and an off-topic sentence are worth (the values of `gold_score`), and errs
    in three ways. One answer in four he rates **without a look at the letter**: any tip and any feeling is a right one. **His mood**
    adds a normal number of standard deviation 1. **Each exclamation mark charms him**, by +0.2 without limit. To names, repeats,
    unfinished sentences, shouting and length he is blind.

    The first two are noise, which averages out over many labels; what charms him and what he overlooks do not, and a reward
    model learns them. The noise is a function of letter and answer: asked again, he says the same.

    Args:
        prompt: a letter of this world; its text is all that is read.
        responses: answers to it.

    Returns:
        One rating per response, larger is better.

    Raises:
        UserError: if the prompt is no letter of this world.
    """
    text = prompt_text(prompt)
    letter = read_letter(text)
    return [_rating(random.Random(f"tired {text} {response}"), letter, response) for response in responses]


def _rating(noise: random.Random, letter: Letter, response: str) -> float:
    kinds = sentence_kinds(letter, response)
    if noise.random() >= LOOKS_AT_THE_LETTER:
        kinds = [kind.removeprefix("wrong ") for kind in kinds]
    worth = sum(value for kind, value in ONCE.items() if kind in kinds)
    worth += sum(EACH_TIME.get(kind, 0.0) for kind in kinds if kind != "broken")
    return worth + CHARMED * response.count("!") + noise.gauss(0.0, MOOD)
