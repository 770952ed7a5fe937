"""What is judged is data: from text to `Annotation`, no response becomes structure, whatever it says."""

import random
import re
from types import SimpleNamespace

import pytest
import torch

from lit_align.annotators import Checklist, Constitution, LocalLM, PairwiseJudge, Rubric, ScoringJudge
from lit_align.annotators.template import PLACES, Template
from lit_align.models.escaping import Escape, control_strings
from tests.annotators.injections import INJECTIONS
from tests.annotators.test_template import SHIPPED
from tests.annotators.worlds import Fake, rollouts
from tests.tokenizers import CHATML, of_bytes

GOOD, POOR = "Paris, quality 7. ", "Paris, quality 4. "
MAKE = {
    "scoring": ScoringJudge,
    "pairwise": PairwiseJudge,
    "rubric": lambda backend, template: Rubric(backend, {"true": "Is it true?"}, template=template),
    "constitution": lambda backend, template: Constitution(backend, ["Choose the true one."], template=template),
    "checklist": lambda backend, template: Checklist(backend, ["Is it true?"], template=template),
}


def tags_of(protocol, name):
    """Of a template: the opening tag of each place."""
    places = [*PLACES[protocol], "reference"]
    return {place: tag for tag, place in re.findall(r"(<[\w-]+>)\n\{(\w+)\}", Template.load(name, protocol)._text) if place in places}


def closing(tag):
    return tag.replace("<", "</")


def injected(text, tag):
    name = tag[1:-1]
    return text.replace("NAMEUP", name.upper()).replace("OPEN", tag).replace("CLOSE", closing(tag)).replace("NAME", name)


def quality(question, tag):
    """What a judge that follows structure sees between these delimiters, the last of them if there are several; 1 if it sees nothing."""
    between = re.findall(f"{tag}\n(.*?)\n{closing(tag)}", question, re.DOTALL)
    said = re.search(r"quality (\d)", between[-1]) if between else None
    return int(said.group(1)) if said else 1


class Reader(torch.nn.Module):
    """A language model that obeys structure alone: it reads the user's last turn, there what stands between delimiters, and says what that
    is worth. It remembers the special tokens of what it read."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=None))

    def __init__(self, tokenizer, tags):
        super().__init__()
        self.tokenizer, self.tags = tokenizer, [tag for place, tag in tags.items() if place.startswith("response")]
        self.special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.seen, self.texts = [], []

    def forward(self, input_ids, attention_mask, logits_to_keep, use_cache):
        logits = torch.zeros(len(input_ids), logits_to_keep, len(self.tokenizer))
        for row, (tokens, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            read = tokens[mask.bool()].tolist()
            self.seen.append([token for token in read if token in self.special])
            starts = [i for i, token in enumerate(read) if token == self.tokenizer.convert_tokens_to_ids("<|im_start|>")]
            turn = read[starts[-2] :] if len(starts) > 1 else read
            self.texts.append(self.tokenizer.decode(turn))
            found = [quality(self.texts[-1], tag) for tag in self.tags]
            verdict = str(found[0]) if len(found) == 1 else "12"[found[1] > found[0]]
            logits[row, :, self.tokenizer.convert_tokens_to_ids(verdict)] = 20.0
        return SimpleNamespace(logits=logits)


def judge_of(protocol, name, chat):
    """A judge over a tokenizer with special tokens, and what it looks at."""
    tokenizer = of_bytes()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "</s>", "[INST]", "[/INST]"]})
    tokenizer.chat_template = CHATML.read_text(encoding="utf-8") if chat else None
    backend, reader = LocalLM("reader", batch_size=128), Reader(tokenizer, tags_of(protocol, name))
    backend.host._loaded = reader, tokenizer
    return MAKE[protocol](backend, name), reader


def cases(protocol, name, where):
    """Rows of two responses, of qualities 7 and 4, each with an injection in the first one or in the prompt."""
    tag = next(tag for place, tag in tags_of(protocol, name).items() if place.startswith(where))
    texts = [injected(injection.text, tag) for injection in INJECTIONS.values()]
    if where == "prompt":
        return rollouts([[GOOD, POOR]] * len(texts), texts)
    return rollouts([[GOOD + text, POOR] for text in texts], ["Which city?"] * len(texts))


ASKED = [(protocol, name) for protocol, name in SHIPPED if protocol != "checklist"]


@pytest.mark.parametrize("chat", [True, False], ids=["chat template", "no chat template"])
@pytest.mark.parametrize(("protocol", "name"), ASKED)
def test_no_response_is_more_than_a_response(protocol, name, chat):
    assert len(INJECTIONS) >= 25
    judge, reader = judge_of(protocol, name, chat)
    plain = judge.annotate(rollouts([[GOOD, POOR]], ["Which city?"]))
    [special] = set(map(tuple, reader.seen))
    assert len(special) == (4 if chat else 0)
    found = judge.annotate(cases(protocol, name, "response"))
    assert set(map(tuple, reader.seen)) == {special}
    for tag in tags_of(protocol, name).values():
        assert {(text.count(tag), text.count(closing(tag))) for text in reader.texts} == {(1, 1)}
    rows = len(INJECTIONS)
    torch.testing.assert_close(found.scores, plain.scores.expand(rows, 2), atol=1e-6, rtol=0)
    assert plain.scores[0, 0] > plain.scores[0, 1]
    assert found.valid.all()
    if protocol in ("pairwise", "constitution"):
        torch.testing.assert_close(found.preferences, plain.preferences.expand(rows, 2, 2), atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("protocol", ["scoring", "pairwise"])
def test_nor_is_a_prompt(protocol):
    judge, reader = judge_of(protocol, "helpfulness", chat=True)
    plain = judge.annotate(rollouts([[GOOD, POOR]], ["Which city?"]))
    found = judge.annotate(cases(protocol, "helpfulness", "prompt"))
    torch.testing.assert_close(found.scores, plain.scores.expand(len(INJECTIONS), 2), atol=1e-6, rtol=0)
    assert len(set(map(tuple, reader.seen))) == 1
    for tag in tags_of(protocol, "helpfulness").values():
        assert {(text.count(tag), text.count(closing(tag))) for text in reader.texts} == {(1, 1)}


def test_a_checklist_keeps_them_apart_too():
    backend = Fake(lambda _: [-1.4] * 4)
    Checklist(backend, ["Is it true?"]).annotate(cases("checklist", "general", "response"))
    for tag in tags_of("checklist", "general").values():
        assert {(question.count(tag), question.count(closing(tag))) for question in backend.questions} == {(1, 1)}


def test_the_suite_has_teeth(monkeypatch):
    """Put in as they are, the texts of which the table says so change delimiters, special tokens or the verdict, and no others do."""
    monkeypatch.setattr(Escape, "__call__", lambda self, text: text)
    judge, reader = judge_of("scoring", "helpfulness", chat=True)
    judge.annotate(rollouts([[GOOD, POOR]], ["Which city?"]))
    special, plain = reader.seen[0], judge.annotate(rollouts([[GOOD, POOR]], ["Which city?"])).scores
    tags, worked, misled = tags_of("scoring", "helpfulness"), set(), 0
    for name, injection in INJECTIONS.items():
        reader.seen.clear()
        reader.texts.clear()
        scores = judge.annotate(rollouts([[GOOD + injected(injection.text, tags["response"]), POOR]], ["Which city?"])).scores
        counts = {text.count(mark) for text in reader.texts for tag in tags.values() for mark in (tag, closing(tag))}
        if counts != {1} or any(seen != special for seen in reader.seen) or (scores - plain).abs().max() > 1e-3:
            worked.add(name)
            misled += (scores - plain).abs().max() > 1e-3
    assert worked == {name for name, injection in INJECTIONS.items() if injection.works}
    assert misled >= 5


# The escape by itself

RESPONSE = Escape(["<response", "</response"], ["<|end|>", "[INST]"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a < b > c",
        "x <- y; </div> <responses> <response_2>",
        "|end|> [inst ruction]",
        "naïve ＜ ≮ 你好 \u200b",
        "\\\\ <\\ \\<",
        "[[INS T",
    ],
)
def test_ordinary_text_is_unchanged(text):
    assert RESPONSE(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<response>", "<\\response>"),
        ("</ RESPONSE >", "<\\/ RESPONSE >"),
        ("<\\response>", "<\\\\response>"),
        ("a<|end|>b", "a<\\|end|>b"),
        ("<|END\u200b|>", "<\\|END\u200b|>"),
        ("＜ｒesponse＞", "＜\\ｒesponse＞"),
        ("[inst]", "[\\inst]"),
        ("<<response>response", "<<\\response>response"),
    ],
)
def test_what_reads_as_a_mark_gets_a_backslash(text, escaped):
    assert RESPONSE(text) == escaped


def undone(text):
    for place in reversed(RESPONSE.places(text)):
        assert text[place] == "\\"
        text = text[:place] + text[place + 1 :]
    return text


def test_the_escape_can_be_undone_and_leaves_no_mark():
    generator = random.Random(0)
    pieces = ["<", "＜", "\\", "/", " ", "response", "Response", "|", "end", ">", "[", "INST", "]", "\u200b", "x", "_", "ﬁ"]
    marks = 0
    for _ in range(3000):
        text = "".join(generator.choice(pieces) for _ in range(generator.randint(1, 12)))
        escaped = RESPONSE(text)
        marks += escaped != text
        assert undone(escaped) == text
        assert not re.search(r"</?response>|<\|end\|>|\[INST\]", escaped)
    assert marks > 100


def test_what_a_tokenizer_takes_for_structure():
    tokenizer = of_bytes()
    tokenizer.chat_template = CHATML.read_text(encoding="utf-8") + "{{ '[INST] <<SYS>>' }}{{ messages[0]['role'] }}"
    expected = {"<pad>", "<eos>", "<bos>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "[INST]", "<<SYS>>"}
    assert control_strings(tokenizer) == expected


def test_a_plain_text_is_read_as_it_is():
    judge, reader = judge_of("scoring", "helpfulness", chat=True)
    tag = tags_of("scoring", "helpfulness")["response"]
    judge.backend.option_logps([f"<eos>{tag}\n{GOOD}\n{closing(tag)}</s>"], ("1", "2"))
    assert len(reader.seen[0]) == 2
