"""Memory that stays in its place and operations that are replayed say what the plain way says."""

import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.testing import assert_close

from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy, fused, static
from lit_align.models.decoding import PaddedRows
from lit_align.models.static import StaticRows, fits, rung
from lit_align.types import EncodedPrompt, Prompt, Stream
from tests.models.families import FAMILIES, write_family
from tests.models.recorder import run_and_record
from tests.models.test_fused import TOKENS, randomise, read
from tests.models.test_matrix import check_sampling, make_policy, sample
from tests.tiny import write_tiny

FULL = ["llama", "qwen2", "qwen3", "mistral", "granite", "gpt2", "opt", "gpt_neox", "falcon", "mixtral"]
OTHER = ["qwen2, a window", "gemma2", "gemma3", "phi3", "gpt_oss", "cohere2", "bloom", "mpt", "mamba2", "bamba", "recurrent_gemma"]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """As if it were a GPU; rooms are small, so that texts outgrow them."""
    monkeypatch.setattr(static, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(static, "ROOM", 4)
    monkeypatch.setattr(static, "_UNRECORDED", weakref.WeakSet())  # of this test alone
    monkeypatch.setattr(fused, "LARGEST", 0)


@pytest.fixture
def recorded(monkeypatch):
    """Steps are recorded and replayed; (rows, room) of each recording."""
    shapes = []

    def record(step, device):
        shapes.append(tuple(step.args[1].mask.shape))
        return run_and_record(step, device)

    monkeypatch.setattr(static, "run_and_record", record)
    return shapes


@pytest.mark.parametrize("family", FULL)
def test_replayed_steps_say_what_the_plain_way_says(tmp_path, family, recorded):
    """With rows repeated, reversed and dropped, and texts that outgrow their room."""
    policy = randomise(CausalPolicy(write_family(tmp_path, family)))
    assert fits(policy.model)
    plain = read(policy, PaddedRows)
    assert_close(read(policy, StaticRows), plain, atol=2e-5, rtol=0)
    assert not static._UNRECORDED
    assert len(recorded) == len(set(recorded)) == 6, "once for each size"


def test_experts_whose_tokens_are_counted_in_python_are_not_recorded(tmp_path, recorded):
    policy = randomise(CausalPolicy(write_family(tmp_path, "mixtral")))
    policy.model.set_experts_implementation("eager")
    plain = read(policy, PaddedRows)
    assert_close(read(policy, StaticRows), plain, atol=2e-5, rtol=0)
    assert set(static._UNRECORDED) == {policy.model}
    assert len(recorded) == 1, "it is tried once"


@pytest.mark.parametrize("family", OTHER)
def test_windows_states_and_biases_by_distance_are_not_for_it(tmp_path, family):
    assert not fits(CausalPolicy(write_family(tmp_path, family)).model)


@pytest.mark.parametrize(("window", "way"), [(5, PaddedRows), (40, PaddedRows), (99, StaticRows)])
def test_a_window_that_is_counted_in_slots_is_not_for_it(tmp_path, window, way, monkeypatch, recorded):
    """Also one that is longer than the room that the probe's texts need: it begins at the room's end."""
    kind, options = FAMILIES["gpt_neo"]
    monkeypatch.setitem(FAMILIES, "slots", (kind, options | {"max_position_embeddings": 99, "window_size": window}))
    assert CausalPolicy(write_family(tmp_path, "slots")).way is way


def test_there_is_room_for_no_more_tokens_than_the_model_can_read(tmp_path, monkeypatch, recorded):
    """Some models have a place for no more slots, written or not."""
    kind, options = FAMILIES["gpt_neo"]
    monkeypatch.setitem(FAMILIES, "short", (kind, options | {"max_position_embeddings": 11, "window_size": 11}))
    policy = CausalPolicy(write_family(tmp_path, "short"), temperature=0.9)
    assert policy.way is StaticRows
    recorded.clear()
    check_sampling(policy, sample(policy, [(2,), (3, 4)], 9))
    assert max(room for _, room in recorded) == 11


@pytest.mark.parametrize("option", ["whole", "eager", "LoRA", "LoRA, checkpointed"])
def test_the_same_tokens_from_the_same_noise(tmp_path, option, recorded):
    policy = make_policy(tmp_path, "qwen2", option)
    assert policy.way is StaticRows
    recorded.clear()
    replayed = sample(policy)
    assert len(recorded) == len(set(recorded)) > 2, "once for each size"
    if option == "whole":
        assert recorded == [(6, 12), (3, 12), (2, 16), (2, 24)], "which changes where rows end or texts outgrow it"
    check_sampling(policy, replayed)
    policy.decoding = "PaddedRows"
    plain = sample(policy)
    assert torch.equal(replayed.response_tokens, plain.response_tokens)
    assert_close(replayed.sampling_logps, plain.sampling_logps, atol=2e-5, rtol=0)


def test_many_tokens(tmp_path, recorded):
    """Longer than any test of it else, of twenty rows, most of which end on the way."""
    policy = CausalPolicy(write_tiny(tmp_path, context=256), temperature=0.9)
    prompts = [EncodedPrompt(Prompt(id=i, content=""), (3 + i,) * (1 + 3 * i)) for i in range(5)]
    said = []
    assert policy.way is StaticRows
    recorded.clear()
    for way in (StaticRows, PaddedRows):
        policy.decoding = way.__name__
        with policy.inference():
            said.append(CacheSampler(100).sample(policy, prompts, 4, Stream(3, "train", 0)))
    assert torch.equal(said[0].response_tokens, said[1].response_tokens)
    assert said[0].response_tokens.shape[-1] > 64
    sizes = [rows for rows, _ in recorded]
    assert sizes[0] == 24
    assert sizes == sorted(sizes, reverse=True)
    assert len(recorded) == len(set(recorded))


def test_weights_are_read_where_they_are(tmp_path, recorded):
    """A step of an optimizer changes them in place; offloading puts them elsewhere."""
    policy = CausalPolicy(write_tiny(tmp_path), temperature=0.9)
    first = sample(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.2)
    second = sample(policy)
    assert not torch.equal(first.sampling_logps, second.sampling_logps)
    check_sampling(policy, second)
    for parameter in policy.parameters():
        parameter.data = parameter.data.clone() * 0.9
    check_sampling(policy, sample(policy))


def test_a_replay_reads_weights_in_place(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(static, "ROOM", 16)
    policy = CausalPolicy(write_tiny(tmp_path)).eval()
    cache, mask, said = StaticRows(policy.model), TOKENS != 0, []
    with torch.no_grad():
        cache.read(TOKENS, mask)
        for step in range(3):
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.bool)], 1)
            said.append(cache.read(torch.full((3, 1), 5 + step), mask))
            policy.model.get_output_embeddings().weight.mul_(2.0)
        expected = policy.model(input_ids=torch.tensor([[3, 4, 5, 6, 7, 5, 6, 7]])).logits[0, -1]
    assert len(recorded) == 1
    assert_close(said[2][1] * 2, expected, atol=1e-4, rtol=1e-5)


def test_nothing_is_left_when_the_call_is_over(tmp_path, monkeypatch):
    policy = CausalPolicy(write_tiny(tmp_path), temperature=0.9)
    assert policy.way is StaticRows
    memories = []

    def record(step, device):
        assert not any(memory() for memory in memories), "the old memory goes before a step is recorded in the new one"
        memories.append(weakref.ref(step.args[1]))
        return run_and_record(step, device)

    monkeypatch.setattr(static, "run_and_record", record)
    sample(policy)
    assert len(memories) > 2
    assert not any(memory() for memory in memories)


@pytest.mark.parametrize("taken", [True, False])
def test_what_can_not_be_recorded_is_read_plainly(tmp_path, monkeypatch, caplog, taken):
    """Whether the failure comes after the step or before it, the call goes on with the right tokens."""
    policy = CausalPolicy(write_tiny(tmp_path), temperature=0.9)
    assert policy.way is StaticRows

    def fail(step, device):
        if taken:
            step()
        try:
            raise RuntimeError("operation not permitted\nlong story")
        finally:
            raise RuntimeError("the end of the recording fails too")

    monkeypatch.setattr(static, "run_and_record", fail)
    with caplog.at_level("INFO"):
        check_sampling(policy, sample(policy))
        assert type(policy.next_token_logits(TOKENS, TOKENS != 0)[1]) is PaddedRows
        check_sampling(policy, sample(policy))
    assert [r.message for r in caplog.records if "recorded" in r.message] == [
        "A step of LlamaForCausalLM could not be recorded as a CUDA graph (operation not permitted). Samples are drawn without one, from "
        "the next call of the sampler on by `PaddedRows`."
    ], "once, although sizes changed in that call"
    other = CausalPolicy(write_tiny(tmp_path))
    assert fits(other.model), "of this model only"
    assert other.way is PaddedRows, "found out by the probe"


def test_an_error_of_the_model_is_an_error(tmp_path, monkeypatch):
    policy = CausalPolicy(write_tiny(tmp_path))
    assert policy.way is StaticRows
    _, cache = policy.next_token_logits(TOKENS, TOKENS != 0)

    def broken(**options):
        raise RuntimeError("of the model's own")

    policy.model.forward = broken
    with pytest.raises(RuntimeError, match="of the model's own"):
        policy.next_token_logits(TOKENS[:, :1], torch.ones(3, 6, dtype=torch.bool), cache)


def test_memory_that_nobody_wrote_is_no_nan(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path))
    torch.use_deterministic_algorithms(True)  # which fills fresh memory with NaN
    try:
        assert not read(policy, StaticRows).isnan().any()
    finally:
        torch.use_deterministic_algorithms(False)


def test_several_tokens_at_once_after_the_first(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path)).eval()
    mask = torch.cat([TOKENS != 0, torch.ones(3, 4, dtype=torch.bool)], 1)
    following = torch.arange(12).view(3, 4) + 2
    said = []
    with torch.no_grad():
        for way in (StaticRows, PaddedRows):
            cache = way(policy.model)
            cache.read(TOKENS, mask[:, :5])
            said.append(cache.read(following, mask))
    assert_close(said[0], said[1], atol=2e-5, rtol=0)


def test_a_row_may_be_repeated_on_the_way(tmp_path, recorded, monkeypatch):
    monkeypatch.setattr(static, "ROOM", 16)  # so that nothing else moves rows
    policy = CausalPolicy(write_tiny(tmp_path)).eval()
    said = []
    with torch.no_grad():
        for way in (StaticRows, PaddedRows):
            cache, mask = way(policy.model), TOKENS != 0
            cache.read(TOKENS, mask)
            for rows in ([0, 1, 2], [2, 0, 0], [1, 1, 2, 0]):
                cache.reorder_cache(torch.tensor(rows))
                mask = torch.cat([mask[rows], torch.ones(len(rows), 1, dtype=torch.bool)], 1)
                said.append(cache.read(torch.arange(len(rows)).unsqueeze(-1) + 4, mask))
    assert_close(torch.cat(said[:3]), torch.cat(said[3:]), atol=2e-5, rtol=0)


def test_mixed_precision_is_replayed_as_it_is_read(tmp_path, recorded, monkeypatch):
    """Casts of weights are part of the step: those that autocast keeps are gone when its context ends, and of older weights."""
    monkeypatch.setattr(static, "ROOM", 16)
    policy, head, mask = CausalPolicy(write_tiny(tmp_path), temperature=0.9), "model.lm_head.weight", TOKENS != 0
    said = {}
    for way in (StaticRows, PaddedRows):
        policy.decoding, cache, lines = way.__name__, None, []
        assert policy.way is way
        for step in range(4):
            longer = torch.cat([mask, torch.ones(3, step, dtype=torch.bool)], 1)
            with policy.inference(), torch.autocast("cpu", dtype=torch.bfloat16):
                logits, cache = policy.next_token_logits(TOKENS if step == 0 else torch.full((3, 1), 4 + step), longer, cache)
                policy.get_parameter(head).mul_(2.0)
            lines.append(logits / 2**step)
        said[way] = torch.stack(lines)
        with torch.no_grad():
            policy.get_parameter(head).mul_(2.0**-4)
    assert recorded[-1] == (3, 16)
    assert_close(said[StaticRows], said[PaddedRows], atol=0.15, rtol=0)
    with policy.inference():
        exact, _ = policy.next_token_logits(TOKENS, mask)
    assert (said[StaticRows][0] - exact).abs().max() > 1e-3, "it was rounded"


def test_bfloat16_is_replayed_too(tmp_path, recorded):
    policy = CausalPolicy(write_tiny(tmp_path), dtype="bfloat16")
    assert policy.way is StaticRows
    recorded.clear()
    replayed = read(policy, StaticRows)
    assert len(recorded) == 6
    assert replayed.dtype == torch.bfloat16
    assert_close(replayed, read(policy, PaddedRows), atol=0.1, rtol=0)


def test_in_bfloat16_a_small_copy_in_float32_has_to_confirm_it(tmp_path, monkeypatch):
    """A text misread by less than the rounding of bfloat16 explains."""
    policy, right = CausalPolicy(write_tiny(tmp_path, initializer_range=0.05), dtype="bfloat16"), static._take_step

    def tilted(model, memory):
        right(model, memory)
        memory.logits.add_(0.01 * torch.arange(memory.logits.shape[-1]))

    monkeypatch.setattr(static, "_take_step", tilted)
    assert policy.way is PaddedRows


class Gpu:
    """The names that recording uses, and the order in which it uses them."""

    def __init__(self, monkeypatch):
        self.said, self.now = [], "here"
        for name, value in {
            "current_stream": lambda: Queue(self, self.now),
            "Stream": lambda: Queue(self, "aside"),
            "stream": self.stream,
            "device": self.device,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    def replay(self):
        self.said.append("replay")

    @contextmanager
    def stream(self, queue):
        before, self.now = self.now, queue.name
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def device(self, device):
        assert device == torch.device("cuda", 1)
        yield

    @contextmanager
    def graph(self, graph, capture_error_mode):
        assert graph is self
        assert capture_error_mode == "thread_local"
        self.now = "recording"
        yield
        self.now = "here"  # which PyTorch leaves out where an error comes out of the recording


class Queue:
    def __init__(self, gpu, name):
        self.gpu, self.name = gpu, name

    def wait_stream(self, other):
        self.gpu.said.append(f"{self.name} waits for {other.name}")


def test_a_step_is_taken_aside_and_then_recorded(monkeypatch):
    gpu = Gpu(monkeypatch)
    again = static.run_and_record(lambda: gpu.said.append(f"step, {gpu.now}"), torch.device("cuda", 1))
    assert gpu.said == ["aside waits for here", "step, aside", "here waits for aside", "step, recording"]
    again()
    assert gpu.said[-1] == "replay"


def test_work_goes_on_where_it_was_if_recording_fails(monkeypatch):
    gpu = Gpu(monkeypatch)

    def step():
        if gpu.now == "recording":
            raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        static.run_and_record(step, torch.device("cuda", 1))
    assert gpu.now == "here"


def watched(policy):
    policy.model.model.layers[1].register_forward_pre_hook(lambda module, args: None)


def replaced(policy):
    policy.model.model.layers[0].forward = policy.model.model.layers[0].forward


def flash(policy):
    policy.model.config._attn_implementation = "flash_attention_2"


def elsewhere(policy):
    policy.to("meta")


def gathered(policy):
    next(policy.model.parameters()).ds_id = 0


@pytest.mark.parametrize("change", [watched, replaced, flash, elsewhere, gathered])
def test_who_is_read_plainly(tmp_path, change):
    policy = CausalPolicy(write_tiny(tmp_path), gradient_checkpointing=True)
    assert fits(policy.model), "the hook of checkpointing does nothing to what is read"
    assert policy.way is StaticRows
    change(policy)
    assert not fits(policy.model)
    if change not in (flash, elsewhere):  # which nothing here can read
        assert type(policy.next_token_logits(TOKENS, TOKENS != 0)[1]) is PaddedRows


def test_only_a_gpu_chooses_it(tmp_path, monkeypatch):
    monkeypatch.undo()
    assert "cpu" not in static.DEVICES
    assert not fits(CausalPolicy(write_tiny(tmp_path)).model)


def test_sizes():
    sizes = [rung(count) for count in range(1, 1025)]
    assert sorted(set(sizes)) == sorted({2**i for i in range(11)} | {3 * 2**i for i in range(9)})
    assert all(count <= size < 1.5 * count + 1 for count, size in enumerate(sizes, 1))
