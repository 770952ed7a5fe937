"""Answers as chat templates write them: which tokens they are, which of them are learnt, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from lit_align.models import CausalPolicy
from lit_align.types import Prompt, UserError
from tests.tokenizers import of_bytes, write_with_tokenizer

USER, ASSISTANT = {"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Green."}
MORE, BLACK = {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Black."}
CHATML = Path(__file__).parents[1] / "chatml.jinja"
ASKED, SAID, MARK = "<|im_start|>user\nAnd?<|im_end|>\n", "Green.<|im_end|>", "<|im_start|>assistant\n"
MARKED = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>
{%- endif %}

{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PLAIN = """{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
ENDED = CHATML.read_text(encoding="utf-8") + "{% if not add_generation_prompt %}<eos>{% endif %}"  # as Phi-3's does
FORGETFUL = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'user' or loop.last %}{{ m['content'] }}{% else %}...{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""  # as templates that leave out what was thought
NEVER_WRITTEN = PLAIN.replace("Assistant:{% endif %}", "Assistant: <think>{% endif %}")


def policy_of(folder: Path, template: str, **options: Any) -> CausalPolicy:
    """A policy of bytes, to which both <eos> and <|im_end|> are an end."""
    file = folder / "chat.jinja"
    file.write_text(template, encoding="utf-8")
    return CausalPolicy(write_with_tokenizer(folder / "model", of_bytes(**options), eos_token_id=[1, 4]), chat_template=str(file))


def read(policy: CausalPolicy, tokens: list[int]) -> str:
    return policy.tokenizer.decode(tokens)


def parts(policy: CausalPolicy, prompt: tuple[Any, ...], *turns: Any) -> list[tuple[str, bool]]:
    """The turns in runs of what is learnt and what is not."""
    tokens, learnt = policy.encode_turns(Prompt(0, prompt), turns)
    assert len(tokens) == len(learnt)
    ends = [i for i in range(1, len(tokens)) if learnt[i] != learnt[i - 1]] + [len(tokens)]
    return [(read(policy, tokens[a:b]), learnt[a]) for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("template", [CHATML.read_text(encoding="utf-8"), MARKED, ENDED])
def test_an_answer_is_the_templates_up_to_its_end_of_turn(tmp_path: Path, template: str) -> None:
    policy = policy_of(tmp_path, template)
    assert parts(policy, (USER,), ASSISTANT) == [(SAID, True)]
    assert policy.encode_response(Prompt(0, (USER,)), "Green.") == policy.encode_turns(Prompt(0, (USER,)), [ASSISTANT])[0]
    expected = [(SAID, True), ("\n" + ASKED + MARK, False), ("Black.<|im_end|>", True)]
    assert parts(policy, (USER,), ASSISTANT, MORE, BLACK) == expected
    assert parts(policy, (USER, ASSISTANT, MORE), BLACK) == [("Black.<|im_end|>", True)], "an earlier answer is the prompt's"


def test_what_a_template_marks_is_learnt_and_nothing_else(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"))
    assert parts(policy, (USER,), ASSISTANT) == [("Green.", True)]
    expected = [("Green.", True), ("<|im_end|>\n" + ASKED + MARK, False), ("Black.", True)]
    assert parts(policy, (USER,), ASSISTANT, MORE, BLACK) == expected


def test_what_is_learnt_follows_what_the_policy_is_asked(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, CHATML.read_text(encoding="utf-8"))
    tokens, _ = policy.encode_turns(Prompt(0, (USER,)), [ASSISTANT, MORE, BLACK])
    whole = policy.encode(Prompt(0, (USER, ASSISTANT, MORE)))
    assert (policy.encode(Prompt(0, (USER,))) + tokens)[: len(whole)] == whole


def test_a_template_without_an_end_gets_eos(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, PLAIN)
    assert parts(policy, (USER,), ASSISTANT) == [(" Green.<eos>", True)]
    assert parts(policy, (USER,), ASSISTANT, MORE, BLACK) == [
        (" Green.", True),
        ("\nUser: And?\nAssistant:", False),
        (" Black.<eos>", True),
    ]


def test_a_token_across_the_border_is_cut_there(tmp_path: Path) -> None:
    """The line break before an answer that begins with one would be one token with it; the policy is asked with its own."""
    policy = policy_of(tmp_path, CHATML.read_text(encoding="utf-8"), merges=[("Ċ", "Ċ")])
    tokens, _ = policy.encode_turns(Prompt(0, (USER,)), [{"role": "assistant", "content": "\nGreen."}, MORE, BLACK])
    assert read(policy, tokens) == "\n" + SAID + "\n" + ASKED + MARK + "Black.<|im_end|>"
    assert tokens[0] == policy.tokenizer.convert_tokens_to_ids("Ċ")


def test_options_reach_the_template_here_too(tmp_path: Path) -> None:
    policy = CausalPolicy(
        write_with_tokenizer(tmp_path / "model", of_bytes()),
        chat_template=str(CHATML),
        template_options={"thinking": False},
    )
    with pytest.raises(
        UserError, match=r"chat template of .* writes .*<think>.* before a turn and .*Green.* after it.*[\s\S]*endgeneration"
    ):
        policy.encode_turns(Prompt(0, (USER,)), [ASSISTANT])


@pytest.mark.parametrize(("template", "turns"), [(FORGETFUL, (ASSISTANT, MORE, BLACK)), (NEVER_WRITTEN, (ASSISTANT,))])
def test_a_template_that_writes_a_turn_in_another_way_later_is_refused(tmp_path: Path, template: str, turns: tuple[Any, ...]) -> None:
    policy = policy_of(tmp_path, template)
    with pytest.raises(UserError, match=r"nobody can say which tokens the turn is[\s\S]*chat_template: FILE\.jinja"):
        policy.encode_turns(Prompt(0, (USER,)), turns)


def test_turns_without_the_assistant_and_turns_after_a_text_are_refused(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, PLAIN)
    with pytest.raises(UserError, match="expected an answer with a turn of the assistant"):
        policy.encode_turns(Prompt(0, (USER,)), [MORE])
    with pytest.raises(UserError, match=r"the answer to the text 'Tea[?]' is a list of 1 messages.*`chat: true`"):
        policy.encode_turns(Prompt(0, "Tea?"), [ASSISTANT])
