"""Messages through a template: its options, its special tokens, and what a model without one reads."""

import pytest
import torch

from lit_align.annotators import LocalLM
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import Prompt, UserError
from tests.tokenizers import CHATML, of_bytes, write_with_tokenizer

BOS = 2
CHAT = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hé"})
RENDERED = "<bos><|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"
STRICT = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}a"
SILENT = {"thinking": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer without a template, which puts BOS before every plain text."""
    return write_with_tokenizer(tmp_path_factory.mktemp("chat"), of_bytes(bos=True))


def said(policy, content):
    return policy.tokenizer.decode(policy.encode(Prompt(id=0, content=content)))


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["whole", "lora"])
def test_a_file_gives_a_template_and_bos_stands_once(folder, lora, monkeypatch):
    monkeypatch.setenv("TEMPLATES", str(CHATML.parent))
    policy = CausalPolicy(folder, chat_template="$TEMPLATES/chatml.jinja", lora=lora)
    assert said(policy, CHAT) == RENDERED
    assert said(policy, "hé") == said(policy, "<bos>hé") == "<bos>hé"
    assert policy.encode(Prompt(id=0, content=CHAT)).count(BOS) == 1
    assert policy.encode_response(Prompt(id=0, content="<bos>h"), "é") == policy.encode_response(Prompt(id=0, content="h"), "é")


def test_a_template_decides_about_bos(folder, tmp_path):
    file = tmp_path / "plain.jinja"
    file.write_text(CHATML.read_text(encoding="utf-8").replace("{{ bos_token }}", ""), encoding="utf-8")
    assert said(CausalPolicy(folder, chat_template=str(file)), CHAT) == RENDERED.removeprefix("<bos>")


def test_options_reach_the_template_of_the_policy_and_its_reference(folder):
    policy = CausalPolicy(folder, chat_template=str(CHATML), template_options=SILENT)
    assert said(policy, CHAT) == RENDERED + "<think>\n\n</think>\n\n"
    reference = policy.make_reference().policy
    assert isinstance(reference, CausalPolicy)
    assert said(reference, CHAT) == said(policy, CHAT)
    assert said(CausalPolicy(folder, chat_template=str(CHATML), template_options={"thinking": True}), CHAT) == RENDERED


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "messages", "conversation", "chat_template"])
def test_an_option_that_the_policy_sets_itself_is_refused(folder, name):
    with pytest.raises(UserError, match=rf"policy: template_options sets {name}, which policy decides itself\. Leave it out"):
        CausalPolicy(folder, chat_template=str(CHATML), template_options={"thinking": False, name: True})


def test_an_option_that_no_template_reads_is_refused(folder):
    with pytest.raises(UserError, match=r"template_options sets thinkin, but the chat template of .* never reads it"):
        CausalPolicy(folder, chat_template=str(CHATML), template_options={"thinkin": False})
    with pytest.raises(UserError, match=r"template_options is for a chat template, but the tokenizer of .* has none\. Set `chat_template"):
        CausalPolicy(folder, template_options=SILENT)
    with pytest.raises(UserError, match=r"LocalLM: template_options sets thinkin, but the chat template of .* never reads it"):
        LocalLM(folder, chat_template=str(CHATML), template_options={"thinkin": False}).setup(torch.device("cpu"))


def test_a_template_of_several_names_is_read_for_its_options(folder):
    policy = CausalPolicy(folder, chat_template=str(CHATML))
    policy.tokenizer.chat_template = {"default": CHATML.read_text(encoding="utf-8"), "tool_use": "{{ tools }}"}
    policy.save(str(folder) + "-named")
    assert said(CausalPolicy(str(folder) + "-named", template_options=SILENT), CHAT).endswith("</think>\n\n")


def test_what_a_template_refuses_is_said(folder, tmp_path):
    file = tmp_path / "strict.jinja"
    file.write_text(STRICT, encoding="utf-8")
    policy = CausalPolicy(folder, chat_template=str(file))
    with pytest.raises(UserError, match=r"can't join messages of the roles system, user\. It says: no system turn\n.*another template"):
        policy.encode(Prompt(id=0, content=CHAT))
    assert said(policy, CHAT[1:]) == "a"
