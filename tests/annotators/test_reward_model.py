"""A score is that of the row alone, whatever it was batched and padded with."""

import itertools

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from lit_align.annotators import RewardModelAnnotator
from lit_align.annotators.hosting import HostedModel
from lit_align.types import UserError
from tests.annotators.worlds import CHAT, journal_means, llama_config, make_tokenizer, rollouts, write_judge
from tests.tiny import adamw, make_dar, make_data, make_trainer, write_tiny

TEXTS = [["a", "abc abc", ""], ["jihgfedcba", "b", "cc"], ["d", "e e", "abcdefghij abcdefghij"]]
PLAIN = ["ab", "c", "defg hij"]
CHATS = [({"role": "user", "content": prompt},) for prompt in PLAIN]
FAMILIES = {
    "llama": lambda **c: LlamaForSequenceClassification(llama_config(**c)),
    "gpt2": lambda **c: GPT2ForSequenceClassification(
        GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3, **c)
    ),
    "roberta": lambda **c: RobertaForSequenceClassification(
        RobertaConfig(
            **{"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            | {"max_position_embeddings": 130, "initializer_range": 0.3, "pad_token_id": 0}
            | c
        )
    ),
}


def write_reward_model(folder, family="llama", tokenizer=None, **config):
    torch.manual_seed(1)
    model = FAMILIES[family](**{"num_labels": 1} | config)
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer(chat_template=CHAT)).save_pretrained(folder)
    return str(folder)


def alone(path, family, tokens, label=0):
    """One unpadded row; of a causal model the head at its last token, whatever that token is."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        if family == "roberta":
            return float(model(input_ids=torch.tensor([tokens])).logits[0, label])
        hidden = model.base_model(input_ids=torch.tensor([tokens])).last_hidden_state
        return float(model.score(hidden[0, -1])[label])


@pytest.mark.parametrize("prompts", [PLAIN, CHATS], ids=["plain", "chat"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("family", "pad"),  # an encoder counts positions by its own pad token
    [*itertools.product(["llama", "gpt2"], ["<pad>", "<eos>", None]), ("roberta", "<pad>")],
)
def test_a_score_is_that_of_the_unpadded_row(family, side, pad, prompts, tmp_path):
    tokenizer = make_tokenizer(pad=pad, side=side, chat_template=CHAT)
    path = write_reward_model(tmp_path, family, tokenizer, pad_token_id={"<pad>": 0, "<eos>": 1, None: None}[pad])
    annotator = RewardModelAnnotator(path, batch_size=4)
    annotation = annotator.annotate(rollouts(TEXTS, prompts))
    assert annotation.valid.all()
    for b, (prompt, texts) in enumerate(zip(PLAIN, TEXTS, strict=True)):
        for k, text in enumerate(texts):
            row = prompt + text if prompts is PLAIN else f"{prompt}<eos>{text}<eos>"
            expected = alone(path, family, tokenizer(row)["input_ids"])
            assert annotation.scores[b, k].item() == pytest.approx(expected, abs=1e-5)
    assert annotation.scores.std() > 0.05  # or nothing would have been tested


def test_the_usual_way_would_be_wrong_where_pad_is_eos(tmp_path):
    tokenizer = make_tokenizer(pad="<eos>")
    path = write_reward_model(tmp_path, tokenizer=tokenizer, pad_token_id=1)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    rows = tokenizer(["ab<eos>", "abcd<eos>"], padding=True, return_tensors="pt")
    with torch.no_grad():
        naive = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits[:, 0]
    assert abs(naive[0].item() - alone(path, "llama", tokenizer("ab<eos>")["input_ids"])) > 1e-2


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_neighbours_change_nothing_and_rows_keep_their_places(batch_size, tmp_path):
    path = write_reward_model(tmp_path)
    whole = RewardModelAnnotator(path, batch_size=batch_size).annotate(rollouts(TEXTS, PLAIN)).scores
    for b in range(3):
        one = RewardModelAnnotator(path).annotate(rollouts(TEXTS[b : b + 1], PLAIN[b : b + 1])).scores
        torch.testing.assert_close(whole[b : b + 1], one, atol=1e-5, rtol=0)


def test_the_trainers_precision_is_not_the_reward_models(tmp_path):
    annotator = RewardModelAnnotator(write_reward_model(tmp_path))
    exact = annotator.annotate(rollouts(TEXTS, PLAIN)).scores
    for precision in (MixedPrecision("bf16-mixed", "cpu"), HalfPrecision("bf16-true")):
        with precision.forward_context():
            assert torch.equal(annotator.annotate(rollouts(TEXTS, PLAIN)).scores, exact)
            assert torch.equal(RewardModelAnnotator(str(tmp_path)).annotate(rollouts(TEXTS, PLAIN)).scores, exact)  # loaded here
    low = RewardModelAnnotator(str(tmp_path), dtype="bfloat16").annotate(rollouts(TEXTS, PLAIN)).scores
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, atol=0.1, rtol=0.1)


def test_what_is_too_long_is_invalid_and_said_once(tmp_path):
    path = write_reward_model(tmp_path)
    annotator = RewardModelAnnotator(path, max_tokens=9)
    with pytest.warns(UserWarning, match=r"1 to 9 tokens .* but 3 of a chunk"):
        annotation = annotator.annotate(rollouts(TEXTS, PLAIN))
    annotator.annotate(rollouts(TEXTS, PLAIN))  # another warning would be an error
    lengths = torch.tensor([[len(p) + len(t) for t in texts] for p, texts in zip(PLAIN, TEXTS, strict=True)])
    assert torch.equal(annotation.valid, lengths <= 9)
    assert (annotation.scores[~annotation.valid] == 0).all()
    assert annotator.too_long == 2 * int((lengths > 9).sum())


def test_the_models_own_limit_holds_without_one(tmp_path):
    path = write_reward_model(tmp_path, max_position_embeddings=12)
    with pytest.warns(UserWarning, match="1 to 12 tokens"):
        assert not RewardModelAnnotator(path).annotate(rollouts(TEXTS, PLAIN)).valid.all()


@pytest.mark.parametrize("label", [0, 2])
def test_one_of_several_logits_by_its_number(label, tmp_path):
    path = write_reward_model(tmp_path, num_labels=3)
    annotation = RewardModelAnnotator(path, label=label).annotate(rollouts([["abc"]], ["d"]))
    expected = alone(path, "llama", make_tokenizer()("dabc")["input_ids"], label)
    assert annotation.scores.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({}, {"num_labels": 3}, r"one logit, but .* has 3: .*LABEL_2.*`label: NUMBER`"),
        ({"label": 3}, {"num_labels": 3}, "label should be from 0 to 2 .* got 3"),
        ({"label": -1}, {}, "label should be from 0 to 0 .* got -1"),
        ({"chat_template": "no.jinja"}, {}, "readable Jinja file, got 'no.jinja'"),
    ],
)
def test_a_wrong_setting_is_refused_at_setup(options, config, message, tmp_path):
    with pytest.raises(UserError, match=message):
        RewardModelAnnotator(write_reward_model(tmp_path, **config), **options).setup(torch.device("cpu"))


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"lack score\.weight: the scores would be random"):
        RewardModelAnnotator(write_judge(tmp_path, make_tokenizer())).setup(torch.device("cpu"))


def test_no_model_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match="no model at 'nowhere': it is neither a folder here"):
        RewardModelAnnotator("nowhere").setup(torch.device("cpu"))
    with pytest.raises(UserError, match="a folder without a readable model"):
        RewardModelAnnotator(str(tmp_path)).setup(torch.device("cpu"))


def test_messages_need_a_template_which_a_file_can_give(tmp_path):
    path = write_reward_model(tmp_path / "model", tokenizer=make_tokenizer())
    with pytest.raises(UserError, match=r"has no chat template\. Set `chat_template: FILE\.jinja` of RewardModelAnnotator"):
        RewardModelAnnotator(path).annotate(rollouts(TEXTS, CHATS))
    (tmp_path / "chat.jinja").write_text(CHAT, encoding="utf-8")
    given = RewardModelAnnotator(path, chat_template=str(tmp_path / "chat.jinja")).annotate(rollouts(TEXTS, CHATS))
    own = RewardModelAnnotator(write_reward_model(tmp_path / "own")).annotate(rollouts(TEXTS, CHATS))
    assert torch.equal(given.scores, own.scores)


def test_the_path_is_the_identity():
    assert RewardModelAnnotator("some/model").identity == "some/model"
    assert RewardModelAnnotator("some/model", label=2).identity == "some/model[2]"


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_tokens": 0}])
def test_numbers_out_of_range_are_refused_at_once(options):
    with pytest.raises(UserError, match=r"at least 1.* got 0"):
        RewardModelAnnotator("some/model", **options)


class Movable:
    """Stands for a model, and writes down where it was sent."""

    def __init__(self) -> None:
        self.places = []

    def to(self, place):
        self.places.append(str(place))
        return self

    def eval(self):
        return self

    def requires_grad_(self, wanted):
        assert not wanted
        return self


@pytest.mark.parametrize(("offload", "places"), [(True, ["cpu", "cuda", "cpu"]), (False, ["cuda", "cuda"])])
def test_an_offloaded_model_is_on_the_device_only_while_it_works(offload, places, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    host = HostedModel("Test", str(tmp_path), lambda path, dtype: Movable(), "float32", None, offload, 1)
    host.setup(torch.device("cuda"))
    with host.working() as model:
        assert model.places[-1] == "cuda"
    assert model.places == places


def test_it_comes_back_after_an_error_too(tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    host = HostedModel("Test", str(tmp_path), lambda path, dtype: Movable(), "float32", None, True, 1)
    host.setup(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="out of memory"), host.working():
        raise RuntimeError("out of memory")
    assert host.model.places[-1] == "cpu"


def test_dar_learns_from_a_reward_model(tmp_path):
    annotator = RewardModelAnnotator(write_reward_model(tmp_path / "reward"))
    data, trainer = make_data(annotator=annotator), make_trainer(tmp_path, max_epochs=12)
    trainer.fit(make_dar(write_tiny(tmp_path / "policy"), optimizer=adamw(3e-2)), data)
    assert trainer.callback_metrics["labels/invalid"] == 0
    means = journal_means(tmp_path)
    assert min(means[-3:]) > max(means[:2]) + 0.5
