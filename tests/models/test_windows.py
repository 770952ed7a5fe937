"""Windows are known by what they are called, whatever the model; a copy has every kind of layer and windows that short texts cross."""

from types import SimpleNamespace

import pytest

from lit_align.models import CausalPolicy
from lit_align.models.windows import CUT, small_copy, window_to_cross
from tests.models.families import FAMILIES, LLAMA, write_family


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, (0, False)),
        ({"sliding_window": 6}, (6, False)),
        ({"sliding_window": 6, "use_sliding_window": False}, (0, False)),
        ({"sliding_window": None, "window": -1, "window_size": 0, "windows": [3]}, (0, False)),
        ({"sliding_window": 99}, (0, False)),  # as long as the context
        ({"sliding_window": 98}, (0, True)),
        ({"window_size": 32}, (32, False)),
        ({"window_size": 33}, (0, True)),
        ({"local_attention_window_len": 7, "keep_window_size": 5}, (7, False)),
        ({"attention_window_size": 50, "sliding_window": 8}, (8, True)),
        ({"attention_chunk_size": 64, "mamba_chunk_size": 64}, (0, True)),
        ({"mamba_chunk_size": 8, "max_window_layers": 28, "sliding_window_pattern": 6, "use_sliding_window": True}, (0, False)),
    ],
)
def test_what_is_called_a_window_is_crossed_or_cut(config, found):
    """Counts of layers, and blocks in which something is computed, are none."""
    text = SimpleNamespace(**config)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert window_to_cross(model, 99) == found
    assert window_to_cross(model, None)[1] == (found[1] or config.get("sliding_window") == 99)


def test_a_copy_has_a_layer_of_each_kind_and_every_window_cut(tmp_path, monkeypatch):
    layers = {"num_layers": 4, "attention_types": [[["global"], 3], [["local"], 1]], "window_size": 40}
    monkeypatch.setitem(FAMILIES, "late", ("gpt_neo", FAMILIES["gpt_neo"][1] | layers))
    small = small_copy(CausalPolicy(write_family(tmp_path / "late", "late")).model)
    assert [block.attn.attention_type for block in small.transformer.h] == ["global", "local"]
    assert small.transformer.h[1].attn.attention.bias[0, 0, CUT - 1 : CUT + 1, 0].tolist() == [True, False]

    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    monkeypatch.setitem(FAMILIES, "listed", ("gemma2", LLAMA | {"num_hidden_layers": 3, "layer_types": kinds, "sliding_window": 40}))
    small = small_copy(CausalPolicy(write_family(tmp_path / "listed", "listed")).model)
    assert [layer.self_attn.sliding_window for layer in small.model.layers] == [None, CUT]

    small = small_copy(CausalPolicy(write_family(tmp_path / "llama", "llama")).model)
    assert small.config.num_hidden_layers == 2
