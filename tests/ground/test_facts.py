"""Facts: what is derived from a shape agrees with what its publisher says, and a user's file is taken whole or refused clearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferencegym.ground.errors import ConfigError, InputError, UnknownNameError
from inferencegym.ground.facts import Gpu, Model, gpu, gpus, load_facts, model, models

#: KV bytes a token in bf16 as published or listed by others (engine reference, section 7).
KV_BYTES = {
    "llama-3.1-8b": 131_072,
    "llama-3.1-70b": 327_680,
    "qwen2.5-0.5b": 12_288,
    "qwen2.5-7b": 57_344,
    "qwen2.5-32b": 262_144,
    "qwen2.5-72b": 327_680,
    "qwen3-8b": 147_456,
    "qwen3-30b-a3b": 98_304,
    "mistral-7b": 131_072,
    "gemma-3-270m": 18_432,
    "deepseek-v3": 70_272,
}


@pytest.mark.parametrize("name", models())
def test_parameters_counted_from_the_shape_are_those_published(name: str) -> None:
    facts = model(name)
    assert facts.params() == pytest.approx(facts.published_params, rel=0.01)


@pytest.mark.parametrize("name", KV_BYTES)
def test_kv_bytes_are_those_published(name: str) -> None:
    assert model(name).kv_bytes_per_token() == KV_BYTES[name]


@pytest.mark.parametrize("name", models())
def test_sharing_out_kv_never_loses_any(name: str) -> None:
    facts = model(name)
    for gpus_of_replica in (1, 2, 4, 8):
        assert facts.kv_bytes_per_token("bf16", gpus_of_replica) * gpus_of_replica >= facts.kv_bytes_per_token()
    assert facts.kv_bytes_per_token("fp8") * 2 == facts.kv_bytes_per_token("bf16")


@pytest.mark.parametrize("name", models())
def test_smaller_formats_are_smaller_and_leave_the_head_alone(name: str) -> None:
    facts = model(name)
    sizes = [facts.weight_bytes(weights) for weights in ("bf16", "fp8", "nvfp4", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 2 * facts.params()
    assert sizes[-1] > 2 * facts.head_params


@pytest.mark.parametrize("name", gpus())
def test_a_gpu_has_a_source_and_quantised_peaks_above_its_16_bit_peak(name: str) -> None:
    card = gpu(name)
    assert card.source
    for peak in (card.fp8_flops, card.fp4_flops, card.int8_ops):
        assert peak is None or peak >= card.bf16_flops
    assert card.link_bytes_per_s is None or card.link_bytes_per_s > card.pcie_bytes_per_s


def test_every_name_the_issue_asks_for_is_known() -> None:
    for name in ("a100", "h100", "h200", "b200", "l40s", "rtx-4090", "rtx-pro-6000", "mi300x", "cpu"):
        assert gpu(name) is gpu(name.upper())
    assert model("meta-llama/Llama-3.1-8B") is model("llama-3.1-8b")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"h1000.*known: .*Did you mean 'h100'"):
        gpu("h1000")


def test_an_unknown_format_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"weight_format.*'fp7'.*bf16"):
        model("llama-3.1-8b").weight_bytes("fp7")


GPU = '[gpu.{name}]\nmemory_bytes = 1e10\nhbm_bytes_per_s = 1e12\nbf16_flops = 1e14\npcie_bytes_per_s = 3e10\nsource = "me"\n'
MODEL = """[model.{name}]
layers = 2
hidden = 64
heads = 4
kv_heads = 2
head_dim = 16
ffn = 128
vocab = 100
max_context = 512
source = "me"
"""


def test_facts_of_ones_own_are_known_by_name_and_may_be_loaded_twice(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(GPU.format(name="own-gpu") + 'aliases = ["mine"]\n' + MODEL.format(name="own-model"))
    assert load_facts(file) == ["own-gpu", "own-model"] == load_facts(file)
    assert gpu("mine") is gpu("own-gpu")
    assert isinstance(gpu("own-gpu"), Gpu)
    assert isinstance(model("own-model"), Model)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("memory_bytes = 1", "only \\[gpu.NAME\\]"),
        ("[gpu", "is not TOML"),
        ("", "only \\[gpu.NAME\\]"),
        ("[gpu]\nx = 1", "\\[x\\] is not a table"),
        (GPU.format(name="bad").replace("1e12", '"fast"'), "hbm_bytes_per_s is 'fast'; wanted: a number above 0"),
        (GPU.format(name="bad").replace("1e12", "-1.0"), "hbm_bytes_per_s is -1.0"),
        (GPU.format(name="bad").replace("1e12", "nan"), "hbm_bytes_per_s is nan"),
        (GPU.format(name="bad").replace("1e12", "inf"), "hbm_bytes_per_s is inf"),
        (GPU.format(name="bad").replace("1e12", "true"), "hbm_bytes_per_s is True"),
        (GPU.format(name="bad").replace("hbm_bytes_per_s", "hbm"), "no field 'hbm'; known: .*hbm_bytes_per_s"),
        (GPU.format(name="bad").replace('source = "me"', ""), "lacks source"),
        (GPU.format(name="bad") + 'aliases = "mine"', "aliases is not a list"),
        (GPU.format(name="h100"), "'h100' is already taken"),
        (MODEL.format(name="bad").replace("kv_heads = 2", "kv_heads = 3"), "no multiple of kv_heads"),
        (
            MODEL.format(name="bad").replace("layers = 2", "layers = 2.5"),
            "layers is 2.5; wanted: a whole number above 0",
        ),
        (MODEL.format(name="bad") + "experts = 4\nexperts_active = 5\nexpert_ffn = 8", "experts_active of 1..4"),
        (MODEL.format(name="bad") + "window = 4", "go together"),
        (MODEL.format(name="bad") + "mla_latent = 4", "mla_latent needs"),
    ],
)
def test_a_wrong_file_is_refused_whole_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "wrong.toml"
    before = gpus(), models()
    file.write_text(MODEL.format(name="good") + text if text.startswith("[gpu.") else text)
    with pytest.raises(InputError, match=complaint) as caught:
        load_facts(file)
    assert str(file) in str(caught.value)
    assert (gpus(), models()) == before


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.toml: cannot be read"):
        load_facts(tmp_path / "nowhere.toml")
