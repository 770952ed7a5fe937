"""The generator: what it writes, and that a letter's text says all that the rules need."""

import itertools
import json

import pytest

from lit_align.quickstart.phrases import CHEERS, FEELINGS, OFF_TOPIC, PROBLEMS, RUDE, RUDE_WORDS, SMALL_TALK
from lit_align.quickstart.world import Letter, demonstrations, is_held_out, prompts, read_letter, write_world
from lit_align.types import UserError

TIPS = [tip for problem in PROBLEMS for tip in problem.tips]
COMFORTS = [line for lines in FEELINGS.values() for line in lines]
ANSWERS = [*TIPS, *COMFORTS, *CHEERS, *RUDE, *OFF_TOPIC]


def texts(letters):
    return {letter.content for letter in letters}


def test_a_letter_says_its_problem_its_feeling_and_its_name():
    letter = "The kettle is singing. I am tired about it. Every loaf I bake is as flat as a plate. Yours, Vera\n"
    assert read_letter(letter) == Letter(problem=6, feeling="tired", name="Vera")


@pytest.mark.parametrize(
    "text", ["", "I feel sad. Yours, Vera", "My bread never rises. Yours, Vera", "My bread never rises. I feel sad. Yours, Vera Cruz"]
)
def test_a_text_that_is_no_letter_is_refused(text):
    with pytest.raises(UserError, match="only letters of its own world"):
        read_letter(text)


def test_the_same_seed_writes_the_same_world_and_another_seed_another(tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_world(tmp_path / folder, seed, 40, 30, 20)
    for name in ("demonstrations.jsonl", "prompts.jsonl", "eval_prompts.jsonl"):
        a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
        assert a == b != c


def test_the_files_hold_what_the_generator_makes_and_fit_in_two_megabytes(tmp_path):
    write_world(tmp_path, 0)
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}
    assert {name: len(found) for name, found in rows.items()} == {"demonstrations": 6000, "prompts": 3000, "eval_prompts": 512}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000_000
    assert rows["demonstrations"][:50] == [{"prompt": d.prompt.content, "response": d.response} for d in demonstrations(0, 50)]
    assert rows["eval_prompts"] == [{"prompt": p.content} for p in prompts(0, 512, held_out=True)]
    held_out = {row["prompt"] for row in rows["eval_prompts"]}
    assert held_out.isdisjoint(row["prompt"] for row in rows["demonstrations"] + rows["prompts"])


def test_no_seed_mixes_training_and_held_out_letters():
    trained_on = texts(itertools.chain.from_iterable(prompts(seed, 2000) for seed in range(3)))
    held_out = texts(itertools.chain.from_iterable(prompts(seed, 500, held_out=True) for seed in range(3)))
    assert trained_on.isdisjoint(held_out)
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, trained_on))


def test_a_letter_is_held_out_with_or_without_its_last_line_break():
    letter = prompts(0, 1, held_out=True)[0].content
    assert is_held_out(letter)
    assert is_held_out(letter.rstrip())


def test_letters_of_one_draw_differ_and_so_do_their_ids():
    drawn = prompts(0, 500) + prompts(0, 500, held_out=True)
    assert len(texts(drawn)) == len({p.id for p in drawn}) == 1000
    assert all(0 <= p.id < 2**63 for p in drawn)


def test_more_letters_than_the_world_has_are_refused():
    with pytest.raises(UserError, match="at most 20000 different letters"):
        prompts(0, 20_001)


def test_every_problem_and_feeling_is_written_about():
    read = [read_letter(p.content) for p in prompts(0, 1000)]
    assert {letter.problem for letter in read} == set(range(len(PROBLEMS)))
    assert {letter.feeling for letter in read} == set(FEELINGS)


def test_volunteers_leave_room_to_improve():
    drawn = demonstrations(0, 4000)
    shares = {kind: sum(kind in d.kinds for d in drawn) / len(drawn) for kind in ("tip", "wrong tip", "feeling", "wrong feeling", "rude")}
    assert shares == pytest.approx({"tip": 0.45, "wrong tip": 0.25, "feeling": 0.45, "wrong feeling": 0.2, "rude": 0.12}, abs=0.03)
    assert sum(d.greeted for d in drawn) / len(drawn) == pytest.approx(0.9, abs=0.02)


def test_a_key_word_is_in_the_tips_for_its_problem_and_in_nothing_else_that_is_answered():
    for problem in PROBLEMS:
        assert [line for line in ANSWERS if problem.key in line.lower()] == list(problem.tips)


def test_a_feeling_word_is_in_its_own_comforts_and_in_nothing_else_that_is_written():
    others = [*SMALL_TALK, *(line for problem in PROBLEMS for line in problem.letters)]
    for feeling, lines in FEELINGS.items():
        assert [line for line in [*ANSWERS, *others] if feeling in line.lower()] == list(lines)


def test_only_rude_sentences_hold_a_rude_word_and_only_cheers_an_exclamation_mark():
    assert [line for line in ANSWERS if any(word in line.lower() for word in RUDE_WORDS)] == list(RUDE)
    assert [line for line in ANSWERS if "!" in line] == list(CHEERS)
    assert all(line.count("!") == 1 for line in CHEERS)
    assert all(sum(line.lower().count(word) for word in RUDE_WORDS) == 1 for line in RUDE)
