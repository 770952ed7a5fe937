"""Annotators over annotators: what becomes of scores, of what is invalid, of preferences, and of who said it."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch.testing import assert_close

from lit_align.annotators import (
    Cached,
    Ensemble,
    LengthPenalty,
    Mean,
    MeanMinusVariance,
    RepeatRank,
    RewardModelAnnotator,
    Router,
    WeightedSum,
    WorstCase,
)
from lit_align.data.journal import LabelJournal
from lit_align.evaluation.answers import text_rollouts
from lit_align.metering import current_repeat
from lit_align.types import Annotation, Annotator, Prompt, Stream, UserError
from tests.annotators.worlds import rollouts

NAN = math.nan
TEXTS = [["a", "b b", "c c c"], ["d d", "e", "f f f f"]]
FIRST = [[1.0, 2.0, 3.0], [4.0, 0.0, -2.0]]
SECOND = [[3.0, 2.0, -3.0], [0.0, 8.0, -2.0]]
PREFERENCES = [[[NAN, 0.2, 0.4], [0.8, NAN, 1.0], [0.6, 0.0, NAN]], [[NAN, NAN, 0.5], [NAN, NAN, NAN], [0.5, NAN, NAN]]]


class Said(Annotator):
    """Says what it is told to, of the rows whose prompt's number it finds there."""

    def __init__(self, scores, identity="said", *, preferences=None, mass=None, parts=None, log_odds=False):
        self.scores, self.identity, self.log_odds = torch.tensor(scores), identity, log_odds
        self.parts = {name: torch.tensor(part) for name, part in (parts or {}).items()}
        self.preferences = None if preferences is None else torch.tensor(preferences)
        self.mass = None if mass is None else torch.tensor(mass)
        self.asked, self.woken, self.taught = [], [], []

    def annotate(self, rollouts):
        rows = [prompt.id for prompt in rollouts.prompts]
        self.asked.append(rows)
        of = {name: None if t is None else t[rows] for name, t in (("preferences", self.preferences), ("mass", self.mass))}
        of["parts"] = {name: part[rows] for name, part in self.parts.items()}
        return Annotation(scores=self.scores[rows], valid=~self.scores[rows].isnan(), annotator_version=self.version, **of)

    def learn(self, rollouts, ask):
        self.taught.append([prompt.id for prompt in rollouts.prompts])
        return {"learnt/prompts": float(len(rollouts.prompts))}

    def state_dict(self):
        return {"version": self.version} if self.version else {}

    def load_state_dict(self, state):
        self.version = state.get("version", 0)

    def setup(self, device):
        self.woken.append(device)

    def close(self):
        self.woken.append(None)


def asked(annotator):
    return annotator.annotate(rollouts(TEXTS))


def test_three_ways_to_combine():
    members = [Said(FIRST), Said(SECOND)]
    mean = [[2.0, 2.0, 0.0], [2.0, 4.0, -2.0]]
    variance = [[1.0, 0.0, 9.0], [4.0, 16.0, 0.0]]  # population variance
    assert asked(Ensemble(members)).scores.tolist() == mean
    assert asked(Ensemble(members, WorstCase())).scores.tolist() == [[1.0, 2.0, -3.0], [0.0, 0.0, -2.0]]
    assert_close(asked(Ensemble(members, MeanMinusVariance(0.5))).scores, torch.tensor(mean) - 0.5 * torch.tensor(variance))
    assert asked(Ensemble(members, MeanMinusVariance(0.0))).scores.tolist() == mean
    assert asked(Ensemble(members)).valid.all()


@pytest.mark.parametrize("combine", [Mean(), WorstCase(), MeanMinusVariance(3.0)])
def test_one_member_is_that_member(combine):
    one = asked(Ensemble([Said([[1.0, NAN, 3.0], [4.0, 0.0, -2.0]])], combine))
    assert one.scores.tolist() == [[1.0, 0.0, 3.0], [4.0, 0.0, -2.0]]
    assert one.valid.tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("combine", [Mean(), WorstCase(), MeanMinusVariance(1.0)])
def test_what_one_member_can_t_score_is_invalid_unless_fewer_are_enough(combine):
    gap = [[NAN, NAN, 3.0], [4.0, 0.0, -2.0]]
    members = [Said(FIRST), Said(gap), Said([[1.0, NAN, 3.0], [4.0, 0.0, -2.0]])]
    strict, lenient = asked(Ensemble(members, combine)), asked(Ensemble(members, combine, min_members=2))
    assert strict.valid.tolist() == [[False, False, True], [True, True, True]]
    assert lenient.valid.tolist() == [[True, False, True], [True, True, True]]
    assert strict.scores[0].tolist() == [0.0, 0.0, 3.0]
    assert lenient.scores[0].tolist() == [1.0, 0.0, 3.0], "of two members that said 1, whatever the third would have said"


def test_preferences_are_averaged_where_all_members_have_them():
    other = torch.tensor(PREFERENCES)
    other[0, 0, 1], other[0, 1, 0] = 0.6, 0.4
    other[1, 0, 2] = other[1, 2, 0] = NAN
    members = [Said(FIRST, preferences=PREFERENCES), Said(SECOND, preferences=other.tolist())]
    found = asked(Ensemble(members)).preferences
    assert found is not None
    assert_close(found[0], torch.tensor([[NAN, 0.4, 0.4], [0.6, NAN, 1.0], [0.6, 0.0, NAN]]), equal_nan=True)
    assert found[1].isnan().all()
    of_any = asked(Ensemble(members, min_members=1)).preferences
    assert of_any is not None
    assert of_any[1, 0, 2] == 0.5


@pytest.mark.parametrize(
    "annotator",
    [
        Ensemble([Said(FIRST, preferences=PREFERENCES), Said(SECOND)]),
        Ensemble([Said(FIRST, preferences=PREFERENCES)], WorstCase()),
        Ensemble([Said(FIRST, preferences=PREFERENCES)], MeanMinusVariance(1.0)),
        WeightedSum([Said(FIRST, preferences=PREFERENCES), Said(SECOND)], [1.0, 1.0]),
        LengthPenalty(Said(FIRST, preferences=PREFERENCES), per_word=0.1),
    ],
)
def test_else_there_are_none_for_scores_decide(annotator):
    assert asked(annotator).preferences is None


def test_mass_is_that_of_the_members_with_one():
    members = [Said(FIRST, mass=[[0.5, 0.6, NAN]] * 2), Said(SECOND), Said(SECOND, mass=[[0.7, NAN, NAN]] * 2)]
    assert_close(asked(Ensemble(members)).mass, torch.tensor([[0.6, 0.6, NAN]] * 2), equal_nan=True)
    assert asked(Ensemble(members[1:2])).mass is None


def test_parts_of_members_are_told_apart_by_their_number():
    graded, priced = Said(FIRST, parts={"style": SECOND, "truth": FIRST}), Said(SECOND, parts={"style": FIRST})
    for several in (Ensemble([graded, Said(FIRST), priced], WorstCase()), WeightedSum([graded, Said(FIRST), priced], [1.0, 2.0, 3.0])):
        parts = asked(several).parts
        assert {name: part.tolist() for name, part in parts.items()} == {"style_0": SECOND, "truth_0": FIRST, "style_2": FIRST}
    for alone in (Ensemble([priced]), LengthPenalty(priced, per_word=1.0)):
        assert {name: part.tolist() for name, part in asked(alone).parts.items()} == {"style": FIRST}


def test_parts_of_a_route_are_of_its_prompts_alone():
    told = replace(rollouts(TEXTS), prompts=(Prompt(0, "a", meta={"kind": "x"}), Prompt(1, "b", meta={"kind": "y"})))
    graded = Said(FIRST, parts={"style": SECOND}, preferences=PREFERENCES, mass=FIRST)
    parts = Router("kind", {"x": Said(FIRST), "y": graded}).annotate(told).parts
    assert_close(parts["style_1"], torch.tensor([[NAN] * 3, SECOND[1]]), equal_nan=True)
    assert {*parts} == {"style_1"}


def test_parts_of_repeats_are_their_mean_in_the_order_of_the_responses():
    class Counts(Said):
        def annotate(self, rollouts):
            lengths = torch.tensor([[float(len(text)) for text in texts] for texts in rollouts.texts])
            part = lengths + current_repeat()
            return Annotation(scores=lengths, valid=lengths > 0, parts={"n": part.where((part != 3.0) | (current_repeat() == 0), NAN)})

    parts = asked(RepeatRank(Counts(FIRST), repeats=3, min_agreement=0.0)).parts
    assert parts["n"].tolist() == [[1.5, 4.0, 6.0], [4.0, 1.5, 8.0]]


def test_differences_of_scores_stay_log_odds_where_nothing_but_a_mean_is_taken():
    odds, other = Said(FIRST, log_odds=True), Said(FIRST)
    kept = [Ensemble([odds, odds]), Router("kind", {"x": odds}, odds), RepeatRank(odds, 2, 0.5), Cached(odds, "unused.sqlite")]
    lost = [
        Ensemble([odds, other]),
        Ensemble([odds, odds], WorstCase()),
        Ensemble([odds, odds], MeanMinusVariance(1.0)),
        Router("kind", {"x": odds}, other),
        RepeatRank(other, 2, 0.5),
        Cached(other, "unused.sqlite"),
        WeightedSum([odds], [2.0]),
        LengthPenalty(odds, per_word=1.0),
    ]
    assert [annotator.log_odds for annotator in (*kept, *lost)] == [True] * len(kept) + [False] * len(lost)
    assert RewardModelAnnotator("somewhere").log_odds


def test_a_weighted_sum():
    members = [Said(FIRST), Said([[3.0, 2.0, NAN], [0.0, 8.0, -2.0]])]
    found = asked(WeightedSum(members, [2.0, -0.5]))
    assert found.scores.tolist() == [[0.5, 3.0, 0.0], [8.0, -4.0, -3.0]]
    assert found.valid.tolist() == [[True, True, False], [True, True, True]], "a sum without a part is another quantity"


def test_weighted_preferences_order_responses_as_the_sum_of_their_scores():
    generator, eye = torch.Generator().manual_seed(0), torch.eye(3, dtype=torch.bool)
    members = []
    for _ in range(2):
        upper = torch.rand(2, 3, 3, generator=generator).triu(1)
        whole = (upper + (1 - upper.mT).tril(-1)).where(~eye, NAN)
        members.append(Said(whole.nanmean(-1).tolist(), preferences=whole.tolist()))
    found = asked(WeightedSum(members, [2.0, -0.5]))
    assert found.preferences is not None
    assert_close(found.preferences + found.preferences.mT, torch.ones(2, 3, 3).where(~eye, NAN), equal_nan=True)
    assert_close(found.preferences.nanmean(-1), (found.scores + 0.5) / 2.5), "an increasing line"


def test_routes_answer_for_their_own_prompts_in_order():
    texts = [[letter, letter * 2, letter * 3] for letter in "abcd"]
    first, second = Said([[float(i), i + 0.5, NAN] for i in range(4)], mass=[[0.9] * 3] * 4), Said([[-1.0, -2.0, -3.0]] * 4)
    router = Router("kind", {"maths": first, "7": second}, default=second)
    said = rollouts(texts)
    kinds = ["maths", 7, "maths", "poem"]
    said = replace(said, prompts=tuple(replace(p, meta={"kind": kind}) for p, kind in zip(said.prompts, kinds, strict=True)))
    found = router.annotate(said)
    assert first.asked == [[0, 2]]
    assert second.asked == [[1], [3]], "a route and the default, although they are one here"
    assert found.scores.tolist() == [[0.0, 0.5, 0.0], [-1.0, -2.0, -3.0], [2.0, 2.5, 0.0], [-1.0, -2.0, -3.0]]
    assert found.valid.tolist() == [[True, True, False], [True] * 3, [True, True, False], [True] * 3]
    assert_close(found.mass, torch.tensor([[0.9] * 3, [NAN] * 3] * 2), equal_nan=True)
    assert found.preferences is None


def test_preferences_of_a_route_stand_beside_scores_of_another():
    router = Router("dataset", {"judged": Said(FIRST, preferences=PREFERENCES), "scored": Said(SECOND)})
    said = rollouts(TEXTS)
    found = router.annotate(replace(said, prompts=(replace(said.prompts[0], dataset="judged"), replace(said.prompts[1], dataset="scored"))))
    assert found.preferences is not None
    assert_close(found.preferences[0], torch.tensor(PREFERENCES[0]), equal_nan=True)
    assert found.preferences[1].isnan().all()


def test_a_prompt_without_a_route_is_invalid_and_said_once():
    router = Router("dataset", {"known": Said(FIRST)})
    said = rollouts(TEXTS)
    mixed = replace(said, prompts=(replace(said.prompts[0], dataset="known"), Prompt(1, "", dataset="other")))
    with pytest.warns(UserWarning, match=r"'dataset' to be one of \['known'\], but 1 of a chunk have another, 'other'.*`default`"):
        found = router.annotate(mixed)
    router.annotate(mixed)  # another warning would be an error
    assert found.valid.tolist() == [[True] * 3, [False] * 3]
    assert router.unrouted == 2
    with pytest.warns(UserWarning, match=r"have another, 'None'"):
        assert not Router("kind", {"known": Said(FIRST)}).annotate(said).valid.any(), "no such field"


def test_every_route_learns_from_its_own():
    first, second = Said(FIRST), Said(SECOND)
    said = rollouts(TEXTS)
    mixed = replace(said, prompts=(Prompt(0, "", dataset="a"), Prompt(1, "", dataset="a")))
    metrics = Router("dataset", {"a": first, "b": second}).learn(mixed, lambda annotator, rollouts: annotator.annotate(rollouts))
    assert (first.taught, second.taught) == ([[0, 1]], [[]])
    assert metrics == {"learnt/prompts_0": 2.0, "learnt/prompts_1": 0.0}


class Listwise(Annotator):
    """Scores texts by ``table``, plus ``bias`` times the place that they are shown in; it remembers what it was shown, and which time."""

    def __init__(self, table, bias=0.0, invalid=None):
        self.table, self.bias, self.invalid, self.shown = table, bias, invalid, []

    def annotate(self, rollouts):
        self.shown.append((current_repeat(), rollouts.texts))
        k = len(rollouts.texts[0])
        scores = torch.tensor([[self.table[text] for text in texts] for texts in rollouts.texts]) + self.bias * torch.arange(k)
        preferences = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sigmoid().masked_fill(torch.eye(k, dtype=torch.bool), NAN)
        valid = torch.ones_like(scores, dtype=torch.bool)
        if current_repeat() == 1 and self.invalid is not None:
            valid[:, [texts.index(self.invalid) for texts in rollouts.texts]] = False
        return Annotation(scores=scores, valid=valid, preferences=preferences)


TABLE = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 0.0, "e": 0.1, "f": 0.05}
LETTERS = [["a", "b", "c"], ["d", "e", "f"]]


def test_a_judge_of_places_contradicts_itself_where_responses_hardly_differ():
    judge = Listwise(TABLE, bias=0.4)
    repeat = RepeatRank(judge, repeats=3, min_agreement=0.5)
    found = repeat.annotate(rollouts(LETTERS))
    assert [time for time, _ in judge.shown] == [0, 1, 2]
    assert [texts[0] for _, texts in judge.shown] == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")]
    assert found.valid.tolist() == [[True] * 3, [False] * 3]
    assert_close(found.scores[0], torch.tensor([0.4, 1.4, 2.4])), "every text has been everywhere: the mean of the places is added"
    assert repeat.dropped == 1
    assert found.preferences is not None
    assert found.preferences[0, 2, 0] > found.preferences[0, 1, 0] > 0.5
    assert current_repeat() == 0
    assert RepeatRank(Listwise(TABLE, bias=0.4), 3, 0.0).annotate(rollouts(LETTERS)).valid.all(), "0 keeps all"


def test_a_judge_that_minds_no_order_is_believed():
    plain = Listwise(TABLE)
    found, once = RepeatRank(Listwise(TABLE), 4, 1.0).annotate(rollouts(LETTERS)), plain.annotate(rollouts(LETTERS))
    assert found.valid.all()
    assert_close(found.scores, once.scores)
    assert_close(found.preferences, once.preferences, equal_nan=True)


def test_what_one_repeat_left_invalid_is_and_the_others_are_ranked():
    found = RepeatRank(Listwise(TABLE, invalid="b"), 3, 1.0).annotate(rollouts(LETTERS[:1]))
    assert found.valid.tolist() == [[True, False, True]]
    assert found.scores.tolist() == [[0.0, 0.0, 2.0]]
    pair = RepeatRank(Listwise(TABLE, invalid="b"), 2, 0.0).annotate(rollouts([["a", "b"]]))
    assert not pair.valid.any(), "one response is no ranking"


def test_the_price_of_length():
    said = rollouts(TEXTS)
    by_word = LengthPenalty(Said([[1.0, NAN, 3.0], [4.0, 0.0, -2.0]]), per_word=0.5, free=1).annotate(said)
    assert by_word.scores.tolist() == [[1.0, 0.0, 2.0], [3.5, 0.0, -3.5]]
    assert by_word.valid.tolist() == [[True, False, True], [True] * 3]
    mask = torch.tensor([[[True, True, False, False], [True] * 4, [True, False, False, False]]] * 2)
    wide = replace(said, response_tokens=mask.long(), response_mask=mask, loss_mask=mask, sampling_logps=mask.float())
    by_token = LengthPenalty(Said(FIRST), per_token=0.1, free=2).annotate(wide)
    assert_close(by_token.scores, torch.tensor(FIRST) - torch.tensor([0.0, 0.2, 0.0]))


def test_texts_without_tokens_have_no_length_in_tokens() -> None:
    texts = text_rollouts([Prompt(0, "a")], [("b", "c d e")])
    with pytest.raises(UserError, match=r"per_token needs the tokens .* Give per_word instead"):
        LengthPenalty(Said([[1.0, 1.0]]), per_token=0.1).annotate(texts)
    assert LengthPenalty(Said([[1.0, 1.0]]), per_word=0.1).annotate(texts).scores.tolist() == [[pytest.approx(0.9), pytest.approx(0.7)]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble([]), "Ensemble asks other annotators, at least one"),
        (lambda: Ensemble([Said(FIRST)], min_members=2), "from 1 to the number of annotators, 1, got 2"),
        (lambda: Ensemble([Said(FIRST)], min_members=0), "from 1 to the number of annotators, 1, got 0"),
        (lambda: MeanMinusVariance(-1.0), "not negative, got -1.0"),
        (lambda: MeanMinusVariance(NAN), "not negative, got nan"),
        (lambda: WeightedSum([Said(FIRST)], [1.0, 2.0]), "weights should be 1 finite numbers"),
        (lambda: WeightedSum([Said(FIRST)], [math.inf]), "weights should be 1 finite numbers"),
        (lambda: WeightedSum([Said(FIRST)], [0.0]), "not all 0"),
        (lambda: Router("kind", {}), "Router asks other annotators, at least one"),
        (lambda: RepeatRank(Said(FIRST), 1, 0.5), "repeats should be at least 2"),
        (lambda: RepeatRank(Said(FIRST), 2, 1.5), "from 0 to 1, got 2 and 1.5"),
        (lambda: RepeatRank(Said([[1.0]]), 2, 0.5).annotate(rollouts([["a"]])), "needs at least 2, got 1"),
        (lambda: LengthPenalty(Said(FIRST)), "give either per_token or per_word"),
        (lambda: LengthPenalty(Said(FIRST), 0.1, 0.1), "give either per_token or per_word"),
        (lambda: LengthPenalty(Said(FIRST), per_word=-0.1), "not negative"),
        (lambda: LengthPenalty(Said(FIRST), per_word=0.1, free=-1), "not negative"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def composites(*members):
    return [
        Ensemble(list(members)),
        Ensemble(list(members), WorstCase()),
        Ensemble(list(members), MeanMinusVariance(0.5)),
        Ensemble(list(members), min_members=1),
        WeightedSum(list(members), [1.0, 2.0]),
        WeightedSum(list(members), [2.0, 1.0]),
        Router("a", {"x": members[0], "y": members[1]}),
        Router("b", {"x": members[0], "y": members[1]}),
        Router("a", {"x": members[0], "z": members[1]}),
        Router("a", {"x": members[0]}, default=members[1]),
        *(RepeatRank(member, 2, 0.5) for member in members),
        RepeatRank(members[0], 3, 0.5),
        RepeatRank(members[0], 2, 0.6),
        *(LengthPenalty(member, per_word=0.1) for member in members),
        LengthPenalty(members[0], per_token=0.1),
        LengthPenalty(members[0], per_word=0.1, free=1),
    ]


def test_no_two_have_one_identity():
    names = [["one", "two"], ["one', 'Said two", "x"]]
    identities = [made.identity for first, second in names for made in composites(Said(FIRST, first), Said(SECOND, second))]
    assert len(set(identities)) == len(identities)
    turned = WeightedSum([Said(FIRST, "two"), Said(SECOND, "one")], [1.0, 2.0]).identity
    assert turned not in identities, "the order of members counts"
    again = [made.identity for made in composites(Said(FIRST, "one"), Said(SECOND, "two"))]
    assert again == identities[: len(again)], "the same in every process"


@pytest.mark.parametrize("which", range(18))
def test_the_trainers_precision_is_not_theirs(which):
    long = replace(rollouts([["x " * 257, "b b", "c"]] * 2), prompts=tuple(Prompt(i, "", meta={"a": "x", "b": "x"}) for i in range(2)))
    members = [Said([[0.1, 0.2, 0.3]] * 2), Said([[0.7, 0.6, 1 / 3]] * 2)]
    made = composites(*members)[which]
    exact = made.annotate(long)
    with HalfPrecision("bf16-true").forward_context():
        low = made.annotate(long)
    assert low.scores.dtype == torch.float32
    assert torch.equal(low.scores, exact.scores)


@pytest.mark.parametrize("which", range(18))
def test_members_are_woken_closed_taught_and_remembered(which):
    first, second = Said(FIRST), Said(SECOND)
    made = composites(first, second)[which]
    assert made.state_dict() == {}
    last = made.members[-1]
    assert isinstance(last, Said)
    before = made.version
    last.version = 3
    assert made.version == before + 3
    state = made.state_dict()
    last.version = 0
    made.load_state_dict(state)
    assert last.version == 3
    made.setup(torch.device("cpu"))
    made.close()
    assert last.woken == [torch.device("cpu"), None]
    made.learn(rollouts(TEXTS), lambda annotator, rollouts: annotator.annotate(rollouts))
    assert len(last.taught) == 1
    with pytest.raises(UserError, match=r"member 7 of an annotator has learnt, but \w+ has \d"):
        made.load_state_dict({"7": {"version": 1}})


def test_any_change_of_any_member_is_a_version_of_its_own():
    members = [Said(FIRST), Said(SECOND), Said(FIRST)]
    made, seen = Ensemble([members[0], WeightedSum(members[1:], [1.0, 2.0])]), [0]
    for learns in (1, 0, 2, 2, 1):
        members[learns].version += 1
        seen.append(made.version)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_the_journal_asks_again_when_a_member_has_learnt(tmp_path):
    first, second = Said(FIRST), Said(SECOND)
    ensemble, stream = Ensemble([first, second]), Stream(0, "train", 0)
    journal = LabelJournal(tmp_path, 0)
    for expected in (1, 1, 2, 2):
        second.version = expected - 1
        annotation = journal.annotate(ensemble, rollouts(TEXTS), stream)
        assert annotation.annotator_version == expected - 1
        assert len(first.asked) == expected
    journal.close()


def test_an_annotator_that_learns_nothing_refuses_what_another_learnt():
    class Plain(Annotator):
        def annotate(self, rollouts):
            raise NotImplementedError

    Plain().load_state_dict(Plain().state_dict())
    with pytest.raises(UserError, match="an annotator has learnt, and Plain learns nothing"):
        Plain().load_state_dict({"version": 1})
