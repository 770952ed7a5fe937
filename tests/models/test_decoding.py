"""Models that read on in odd ways are served slowly or refused, and never wrongly."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close
from transformers import MistralForCausalLM

from lit_align.models import CausalPolicy
from lit_align.models.decoding import WAYS, EqualRows, PaddedRows, PromptMaskedRows, RereadRows, probe_texts
from lit_align.models.fused import FusedRows
from lit_align.types import UserError
from tests.models.families import FAMILIES, LLAMA, write_family
from tests.models.test_matrix import PROMPTS, TEMPERATURE, K, alone, check_sampling, sample
from tests.tiny import write_tiny


def odd(policy: CausalPolicy, change):
    """The same policy, whose model's ``forward(**options)`` becomes ``change(forward, options)``."""
    forward = policy.model.forward

    def changed(**options):
        return change(forward, options)

    policy.model.forward = changed
    return policy.eval()


@pytest.fixture
def policy(tmp_path):
    return CausalPolicy(write_tiny(tmp_path), temperature=0.9).eval()


def without_mask(forward, options):
    """Padding is read like text, at positions that nobody asked for."""
    return forward(**{name: value for name, value in options.items() if name not in ("attention_mask", "position_ids")})


class Hidden:
    """The state is in the model, and whose it is nobody can say."""

    cache = None

    def __call__(self, forward, options):
        if options.get("use_cache") and options["input_ids"].shape[1] == 1:
            return forward(**options | {"past_key_values": self.cache})
        self.cache = options.get("past_key_values")
        said = forward(**options)
        if self.cache is not None:
            self.cache.reorder_cache = lambda index: None
        return said


def masked_twice(forward, options):
    """A mask that is longer than what is read is taken for one of what is read."""
    if "attention_mask" in options and options["attention_mask"].shape[1] > options["input_ids"].shape[1]:
        raise ValueError("The mask is too long.")
    return forward(**options)


def shifted(forward, options):
    if "position_ids" in options and options["input_ids"].shape[1] == 1:
        options["position_ids"] = options["position_ids"] + 1
    return forward(**options)


@pytest.mark.parametrize(
    ("change", "way"), [(without_mask, EqualRows), (Hidden(), RereadRows), (shifted, RereadRows), (lambda f, o: f(**o), PaddedRows)]
)
def test_an_odd_model_is_read_in_a_safer_way_with_the_same_result(tmp_path, change, way):
    policy = odd(CausalPolicy(write_tiny(tmp_path), temperature=0.9), change)
    assert policy.way is way
    short, single, long = PROMPTS
    rollouts = sample(policy, [short, long, single, (5, 5)])  # in an order that no exchange of two sorts by length
    del policy.model.forward
    assert len(rollouts.response_mask.sum(-1).unique()) > 1, "rows were dropped on the way"
    check_sampling(policy, rollouts)


def test_a_mask_of_prompts_only(tmp_path):
    policy = odd(CausalPolicy(write_family(tmp_path, "mamba2")), masked_twice)
    assert policy.way is PromptMaskedRows


def test_what_no_way_serves_is_refused_by_name(policy):
    calls = []

    def forgetful(forward, options):
        calls.append(options)
        said = forward(**options)
        said.logits = said.logits + 0.1 * len(calls) * torch.arange(14)
        return said

    with pytest.raises(UserError, match=r"LlamaForCausalLM can't be sampled from: .*PaddedRows \S+ nats.*EqualRows.*RereadRows \S+ nats"):
        _ = odd(policy, forgetful).way


class Overlooking(MistralForCausalLM):
    """Steps are right as long as the window hides nothing from them."""

    def forward(self, input_ids=None, position_ids=None, past_key_values=None, **options):
        said = super().forward(input_ids=input_ids, position_ids=position_ids, past_key_values=past_key_values, **options)
        if past_key_values is not None and input_ids.shape[1] == 1:
            beyond = past_key_values.get_seq_length() > self.config.sliding_window
            said.logits = said.logits + 0.1 * beyond * torch.arange(said.logits.shape[-1])
        return said


@pytest.mark.parametrize("window", [5, 24, 60])
def test_a_step_that_goes_wrong_beyond_the_window_is_found_out(window, tmp_path, monkeypatch):
    """Also beyond one that only a copy's texts cross; where the context is no longer than the window there is nothing to find."""
    monkeypatch.setitem(FAMILIES, "windowed", ("mistral", LLAMA | {"max_position_embeddings": 99, "sliding_window": window}))
    path = write_family(tmp_path, "windowed")
    assert CausalPolicy(path).way is PaddedRows
    policy = CausalPolicy(path)
    policy.model.__class__ = Overlooking
    assert policy.way is RereadRows
    policy = CausalPolicy(path)
    policy.model.__class__, policy.context_length = Overlooking, window
    assert policy.way is PaddedRows


def test_where_no_copy_can_be_made_nothing_confirms_a_long_window(tmp_path, monkeypatch):
    class Unique(MistralForCausalLM):
        def __init__(self, config):
            raise RuntimeError("There is only one.")

    monkeypatch.setitem(FAMILIES, "windowed", ("mistral", LLAMA | {"max_position_embeddings": 99, "sliding_window": 60}))
    policy = CausalPolicy(write_family(tmp_path, "windowed"))
    policy.model.__class__ = Unique
    assert policy.way is RereadRows


@pytest.mark.parametrize("context", [2, 3, 4, 12])
def test_a_short_context_is_kept_to(context, tmp_path, monkeypatch):
    """Learned positions: one token more would be an error."""
    kind, options = FAMILIES["gpt2"]
    monkeypatch.setitem(FAMILIES, "short", (kind, options | {"n_positions": context}))
    policy, read = CausalPolicy(write_family(tmp_path, "short"), temperature=0.9), []
    policy.model.register_forward_pre_hook(lambda *call: read.append(call[2]["input_ids"].shape[1]), with_kwargs=True)
    assert policy.way is PaddedRows
    assert max(read) == context
    policy.model._forward_pre_hooks.clear()
    check_sampling(policy, sample(policy, [(2,), (3,)], context - 1))


@pytest.mark.parametrize("context", [12, None])
@pytest.mark.parametrize("window", [0, 5, 32])
def test_the_probe_pads_and_crosses_the_window_in_the_prompt_and_on_the_way(context, window, policy):
    texts = probe_texts(policy.model, frozenset({0, 1, 2}), context, window)
    shorter, longer = texts.prompt_mask.sum(-1).tolist()
    steps = texts.response_tokens.shape[-1]
    assert 0 < shorter < longer == texts.prompt_tokens.shape[1]
    assert context is None or longer + steps <= context
    if context is None:
        assert shorter <= max(window, 2) < shorter + steps
        assert longer > window
    words = torch.cat([texts.prompt_tokens.flatten(), texts.response_tokens.flatten()])
    assert set(words.tolist()) <= set(range(3, 14))


def test_the_choice_is_made_once_and_said_in_words(policy, caplog):
    with caplog.at_level("INFO"):
        first = sample(policy)
        second = sample(policy)
    assert [r.message for r in caplog.records if "Samples of" in r.message] == [
        "Samples of LlamaForCausalLM are drawn by `FusedRows`, as a probe of the model decided."
    ]
    assert torch.equal(first.sampling_logps, second.sampling_logps)


@pytest.mark.parametrize(
    ("change", "earlier", "taken", "said"),
    [
        (None, "PaddedRows", PaddedRows, "by `PaddedRows`, as the run began; a probe of the model would choose `FusedRows` now."),
        (None, "FusedRows", FusedRows, "by `FusedRows`, as a probe of the model decided."),
        (without_mask, "RereadRows", RereadRows, "by `RereadRows`, as the run began; a probe of the model would choose `EqualRows` now."),
        (
            without_mask,
            "PaddedRows",
            EqualRows,
            "by `EqualRows`, as a probe of the model decided: `PaddedRows`, by which the run began, does",
        ),
        (without_mask, "FusedRows", EqualRows, "`FusedRows`, by which the run began, does not serve it any more."),
        (None, "OlderRows", FusedRows, "`OlderRows`, by which the run began, does not serve it any more."),
    ],
)
def test_the_way_that_a_run_began_with_is_kept_while_it_is_exact(change, earlier, taken, said, policy, caplog):
    policy = policy if change is None else odd(policy, change)
    policy.decoding = earlier
    with caplog.at_level("INFO"):
        assert policy.way is taken
        assert policy.way is taken
    assert policy.decoding == taken.__name__
    assert [said in record.message for record in caplog.records] == [True]


def test_a_faster_way_that_is_off_by_more_than_rounding_is_not_taken(policy, monkeypatch):
    """Nor kept."""
    read = FusedRows.read
    monkeypatch.setattr(FusedRows, "read", lambda *given: read(*given) + 1e-4 * torch.arange(14))
    policy.decoding = "FusedRows"
    assert policy.way is PaddedRows


def test_the_probe_draws_nothing_and_leaves_modes_alone(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path, dropout=0.5))
    policy.train()
    state = torch.get_rng_state()
    assert policy.way is FusedRows, "dropout is off while it is probed"
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.model.training


@pytest.mark.parametrize("way", WAYS)
def test_reordered_rows_go_on_as_if_they_were_alone(tmp_path, way):
    """Repeated, reversed and dropped, at the prompt and later: of a model that every way serves."""
    policy = CausalPolicy(write_family(tmp_path, "mamba2")).eval()
    prompts, first, second = [[2, 5], [3, 4, 5, 6, 7], [9, 8]], [3, 4, 5, 6], [7, 8]
    tokens = torch.tensor([[0, 0, 0, *prompts[0]], prompts[1], [0, 0, 0, *prompts[2]]])
    mask = tokens != 0
    order, later = torch.tensor([2, 1, 1, 0]), torch.tensor([3, 1])
    with policy.inference():
        cache = way(policy.model)
        cache.read(tokens, mask)
        cache.reorder_cache(order)
        mask = torch.cat([mask[order], torch.ones(4, 1, dtype=torch.bool)], 1)
        cache.read(torch.tensor(first).unsqueeze(-1), mask)
        cache.reorder_cache(later)
        mask = torch.cat([mask[later], torch.ones(2, 1, dtype=torch.bool)], 1)
        said = cache.read(torch.tensor(second).unsqueeze(-1), mask)
        for row, text in zip(said, [[*prompts[0], 6, 7], [*prompts[1], 4, 8]], strict=True):
            assert_close(row, policy.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1], atol=1e-4, rtol=0)


def test_bfloat16_is_probed_with_what_it_rounds_in_mind(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path), dtype="bfloat16", temperature=TEMPERATURE)
    assert policy.way is PaddedRows
    rollouts = sample(policy)
    for i, k in product(range(len(PROMPTS)), range(K)):
        with policy.inference():
            logits, response = alone(policy, rollouts, i, k)
        plain = logits.log_softmax(-1).gather(-1, response.unsqueeze(-1)).squeeze(-1)
        assert_close(rollouts.sampling_logps[i, k][: len(response)], plain, atol=0.05, rtol=0)
