"""Text to tokens and back, and what a policy refuses to be made of."""

import json

import pytest
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, GenerationConfig

from lit_align.models import CausalPolicy
from lit_align.types import Prompt, UserError
from tests.tiny import write_tiny

PAD, EOS, BOS = 0, 1, 2
A, B, C = 3, 4, 5
CHAT = ({"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "a"})
TEMPLATE = "<bos>{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"


def write_with(folder, template=None, merges=None, **options):
    """A tiny policy whose tokenizer puts ``template`` (such as ``<bos> $A``) around plain text and knows ``merges``."""
    path = write_tiny(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if template is not None:
        special = [("<bos>", BOS), ("<eos>", EOS)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save_pretrained(path)
    if merges is not None:
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        for new, (left, right) in merges.items():
            del content["model"]["vocab"]["j"]  # its id is free now
            content["model"]["vocab"][new] = 12
            content["model"]["merges"].append([left, right])
        content["pre_tokenizer"] = None
        file.write_text(json.dumps(content))
    return path


def prompt(content):
    return Prompt(id=7, content=content)


@pytest.mark.parametrize("template", ["<bos> $A", "<bos> $A <eos>", "$A", "$A <eos>"])
def test_a_prompt_starts_with_the_tokenizers_bos_once_and_never_ends_with_eos(tmp_path, template):
    policy = CausalPolicy(write_with(tmp_path, template))
    start = [BOS] if "<bos>" in template else []
    assert policy.encode(prompt("abc")) == [*start, A, B, C]
    assert policy.encode_response(prompt("ab"), "c") == [C, EOS]


def test_an_empty_prompt_is_one_token(tmp_path):
    assert CausalPolicy(write_tiny(tmp_path)).encode(prompt("")) == [BOS]
    assert CausalPolicy(write_with(tmp_path, "$A <eos>")).encode(prompt("")) == [EOS]


def test_messages_go_through_the_tokenizers_template(tmp_path):
    path = write_with(tmp_path, "<bos> $A <eos>")  # the template writes its own BOS: a second one must not be added
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = (
        TEMPLATE.replace("{{", "{% if m['role'] == 'assistant' %}b{% endif %}{{") + "{% if add_generation_prompt %}b{% endif %}"
    )
    tokenizer.save_pretrained(path)
    policy = CausalPolicy(path)
    assert policy.encode(prompt(CHAT)) == [BOS, A, B, B, C, EOS, A, B]
    assert policy.encode_response(prompt(CHAT), "ca") == [C, A, EOS]


def test_messages_go_through_a_template_file(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    policy = CausalPolicy(write_tiny(tmp_path / "policy"), chat_template=str(file))
    assert policy.encode(prompt(CHAT)) == [BOS, A, B, C, EOS, A]
    policy.save(str(tmp_path / "saved"))
    assert CausalPolicy(str(tmp_path / "saved")).encode(prompt(CHAT)) == [BOS, A, B, C, EOS, A]
    assert policy.make_reference().policy.encode(prompt(CHAT)) == [BOS, A, B, C, EOS, A]


def test_messages_without_a_template_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"list of messages, but the tokenizer of .* has no chat template[\s\S]*chat_template: FILE\.jinja"):
        CausalPolicy(write_tiny(tmp_path)).encode(prompt(CHAT))


def test_an_answer_is_read_together_with_its_prompt_where_the_prompts_tokens_stay(tmp_path):
    policy = CausalPolicy(write_with(tmp_path, merges={"bc": ("b", "c")}))
    assert policy.encode(prompt("a")) == [A]
    assert policy.encode_response(prompt("a"), "bc") == [12, EOS]
    assert policy.encode_response(prompt("ab"), "c") == [C, EOS]  # jointly [a, bc]: the prompt would no longer be [a, b]


def test_an_answer_starts_inside_the_text_and_not_at_a_new_one(tmp_path):
    """A tokenizer that puts a space before every text would put one between prompt and answer."""
    path = write_tiny(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.save_pretrained(path)
    policy = CausalPolicy(path)
    assert policy.encode(prompt("a")) == [13, A]
    assert policy.encode_response(prompt("a"), "bc") == [B, C, EOS]
    assert policy.encode_response(prompt("a"), " bc") == [13, B, C, EOS]


@pytest.mark.parametrize("content", ["ab", "", CHAT])
@pytest.mark.parametrize("template", [None, "$A <eos>"])
def test_an_answer_ends_with_eos_once(tmp_path, content, template):
    path = write_with(tmp_path, template)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    policy = CausalPolicy(path)
    assert policy.encode_response(prompt(content), "") == [EOS]
    assert policy.encode_response(prompt(content), "ca") == [C, A, EOS]
    assert policy.encode_response(prompt(content), "ca<eos>") == [C, A, EOS]


def test_decoding_leaves_special_tokens_out_and_spaces_alone(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path))
    assert policy.decode([A, 13, B, EOS]) == "a b"
    assert policy.decode([BOS, PAD, C, 13, EOS, EOS]) == "c "
    assert policy.decode([EOS]) == policy.decode([]) == ""


def test_every_config_may_name_an_end(tmp_path):
    path = write_tiny(tmp_path, eos_token_id=[5, 6])
    GenerationConfig(eos_token_id=[7, 8]).save_pretrained(path)
    policy = CausalPolicy(path)
    assert policy.eos_ids == frozenset({5, 6, 7, 8, EOS})
    assert policy.pad_id == PAD


def test_without_a_pad_token_an_end_serves(tmp_path):
    path = write_tiny(tmp_path, pad=False)
    assert CausalPolicy(path).pad_id == EOS


def test_a_policy_whose_responses_could_not_end_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"name an end-of-sequence token, so no response could end\. Set `eos_token_id`"):
        CausalPolicy(write_tiny(tmp_path, eos=False))


def test_an_end_named_by_the_generation_config_alone_is_enough(tmp_path):
    path = write_tiny(tmp_path, eos=False)
    GenerationConfig(eos_token_id=9).save_pretrained(path)
    policy = CausalPolicy(path)
    assert policy.eos_ids == {9}
    assert policy.encode_response(prompt("a"), "b") == [B, 9]


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_divides_by_nothing_is_refused(tmp_path, temperature):
    with pytest.raises(UserError, match=rf"temperature must be positive, got {temperature}\. For greedy answers use a greedy sampler"):
        CausalPolicy(str(tmp_path), temperature=temperature)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"policy: no model at '.*gone': it is neither a folder here nor .*[\s\S]*The current folder is"):
        CausalPolicy(str(tmp_path / "gone"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"policy: no model at .* a folder without a readable model\. Expected a folder with config\.json"):
        CausalPolicy(str(tmp_path))


def test_a_template_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"chat_template should be a readable Jinja file, got '.*gone\.jinja'"):
        CausalPolicy(write_tiny(tmp_path), chat_template=str(tmp_path / "gone.jinja"))
