"""The tired rater errs as he is said to: noise that averages out, and a taste that does not."""

import statistics

import pytest

from lit_align.quickstart.phrases import FEELINGS, OFF_TOPIC, PROBLEMS, RUDE
from lit_align.quickstart.ratings import tired_rating
from lit_align.quickstart.world import demonstrations, prompts, read_letter
from lit_align.types import Prompt, UserError

LETTERS = prompts(0, 2000)


def rated(answer, letters=LETTERS):
    """One rating per letter; ``answer`` makes a text from what the letter says."""
    return [tired_rating(letter, [answer(read_letter(str(letter.content)))])[0] for letter in letters]


def tip(letter):
    return f"Dear {letter.name}, {PROBLEMS[letter.problem].tips[0]}"


def other_tip(letter):
    return f"Dear {letter.name}, {PROBLEMS[letter.problem - 1].tips[0]}"


def comfort(letter):
    return f"Dear {letter.name}, {FEELINGS[letter.feeling][0]}"


def other_comfort(letter):
    return f"Dear {letter.name}, {next(lines for feeling, lines in FEELINGS.items() if feeling != letter.feeling)[0]}"


def said(sentence):
    return lambda letter: f"Dear {letter.name}, {sentence}"


@pytest.mark.parametrize(
    ("answer", "mean", "deviation"),
    [
        (tip, 3.0, 1.0),
        (other_tip, 0.75 * -2 + 0.25 * 3, (1 + 0.75 * 0.25 * 5**2) ** 0.5),
        (comfort, 2.0, 1.0),
        (other_comfort, 0.75 * -1 + 0.25 * 2, (1 + 0.75 * 0.25 * 3**2) ** 0.5),
        (said(RUDE[0]), -2.0, 1.0),
        (said(OFF_TOPIC[0]), -0.7, 1.0),
        (said("Good luck!"), 0.2, 1.0),
        (lambda letter: tip(letter) + "!" * 30, 6.0, 1.0),  # no sentence of the world any more: charm is all that is left
        (lambda letter: f"{tip(letter)} {PROBLEMS[letter.problem].tips[0]} and then", 3.0, 1.0),  # a repeat, a piece
    ],
    ids=["tip", "other tip", "comfort", "other comfort", "rude", "off topic", "cheer", "shouted", "repeated and unfinished"],
)
def test_what_he_says_on_average_and_how_far_from_it(answer, mean, deviation):
    ratings = rated(answer)
    assert statistics.mean(ratings) == pytest.approx(mean, abs=4 * deviation / len(ratings) ** 0.5)
    assert statistics.stdev(ratings) == pytest.approx(deviation, rel=0.08)


def test_each_exclamation_mark_charms_him_without_limit():
    charmed = [statistics.mean(rated(lambda letter, n=n: tip(letter) + " Good luck!" * n)) for n in (0, 50)]
    assert charmed[1] - charmed[0] == pytest.approx(10, abs=0.15)


def test_names_are_nothing_to_him_but_his_mood_is_another_for_every_answer():
    letter = LETTERS[0]
    right = read_letter(str(letter.content))
    names = ("Anna", "Boris", "Clara", "David", "Elena", "Frank", "Greta", "Henry", "Irene", "Jonas")
    answers = [tip(right).replace(right.name, name) for name in names]
    ratings = tired_rating(letter, answers)
    assert statistics.mean(ratings) == pytest.approx(3.0, abs=4 / 10**0.5)
    assert len(set(ratings)) == 10, "a mood that all answers to a letter shared would cancel in their pairs"


def test_asked_again_he_says_the_same_whatever_else_is_there_and_of_another_letter_something_else():
    answers = [demonstration.response for demonstration in demonstrations(3, 6)]
    first, second = LETTERS[:2]
    ratings = tired_rating(first, answers)
    assert tired_rating(first, answers[::-1]) == ratings[::-1]
    assert tired_rating(first, answers[2:3]) == ratings[2:3]
    assert set(ratings).isdisjoint(tired_rating(second, answers))
    assert len(set(ratings)) == len(set(answers))


def test_a_prompt_from_elsewhere_is_refused():
    with pytest.raises(UserError, match="only letters of its own world"):
        tired_rating(Prompt(id=1, content="Write a poem."), ["No."])
