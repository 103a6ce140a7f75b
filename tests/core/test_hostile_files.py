"""Files made to harm: nothing executes, hangs or fills the memory, and the error names the file and the key.

The fuzzers are deterministic; whatever they write reads as an adapter or raises BlendError, and nothing else.
"""

import json
import math
import pickle
import re
import struct
import time
import zipfile

import pytest
import torch
from diffusion_blend.blend_core import BlendError, LoRABank
from diffusion_blend.blend_core.adapters import Adapter, Target, TargetIndex, read_adapter, resolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

MODULE = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
FUZZ = settings(
    derandomize=True,
    deadline=2000,  # ms: nothing hangs
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def pair(rank=2, width=8):
    return {DOWN: torch.ones(rank, width), UP: torch.ones(width, rank)}


def refusal(path):
    """The message, which names the file."""
    with pytest.raises(BlendError) as caught:
        read_adapter(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def read_or_refused(path):
    """The adapter with factors that make sense, or None for a BlendError; anything else is a fault of ours."""
    try:
        adapter = read_adapter(path)
    except BlendError as error:
        assert path.name in str(error) or path.parent.name in str(error)
        return None
    assert isinstance(adapter, Adapter)
    for change in adapter.modules.values():
        if (factors := change.factors) is not None:
            assert factors.up.shape[1] == factors.down.shape[0] > 0
            assert math.isfinite(factors.scale)
            assert torch.isfinite(factors.down).all() and torch.isfinite(factors.up).all()
    assert adapter.summary
    assert adapter.rewards is not None and math.isfinite(adapter.reward_factor)
    return adapter


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


# --- safetensors


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_a_file_with_changed_bytes_reads_or_is_refused(tmp_path, data):
    content = bytearray(save(pair(), {"diffusion_blend.kl_weight": "0.5"}))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    (tmp_path / "lora.safetensors").write_bytes(bytes(content[:end]))
    read_or_refused(tmp_path / "lora.safetensors")


ROLES = [
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
    "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lora_down.weight", "lora_up.weight", "dora_scale",
    "lora_magnitude_vector", "diff", "diff_b", "w_norm", "b_norm", "lora_up.bias", "alpha",
]  # fmt: skip
FULL = {
    "LoHa": {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4), "hada_w2_a": (4, 2), "hada_w2_b": (2, 4)},
    "LoKr": {"lokr_w1": (2, 2), "lokr_w2_a": (2, 1), "lokr_w2_b": (1, 2)},
    "DoRA": {"lora_down.weight": (2, 4), "lora_up.weight": (4, 2), "dora_scale": (4, 1)},
    "difference": {"diff": (4, 4), "diff_b": (4,)},
}
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@pytest.mark.slow
@FUZZ
@given(
    st.sampled_from(sorted(FULL)),
    st.dictionaries(st.sampled_from(ROLES), SHAPES, max_size=3),
    st.sets(st.sampled_from(ROLES), max_size=2),
)
def test_other_kinds_with_changed_missing_and_added_parts_run_or_are_refused(tmp_path, kind, changed, missing):
    shapes = {role: shape for role, shape in (FULL[kind] | changed).items() if role not in missing}
    if not shapes:
        return
    save_file(
        {f"lora_unet_layer.{role}": torch.ones(shape) for role, shape in shapes.items()}, tmp_path / "x.safetensors"
    )
    adapter = read_or_refused(tmp_path / "x.safetensors")
    if adapter is None:
        return
    try:
        placed, _ = resolve(adapter, TargetIndex({"layer": Target("layer", (4, 4))}))
    except BlendError:
        return
    network = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
    with LoRABank([placed]).attach(network).using([0, 1]):
        assert network["layer"](torch.ones(2, 4)).shape == (2, 4)


SIZES = st.sampled_from([0, 1, 2, 7, 8, 2**31, 2**63 - 1, 2**64, -1, 1.5, None, "8"])
DTYPES = ["F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U64", "BOOL", "F4", "C64", "?", 3]
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES),
        "shape": st.lists(SIZES, max_size=4),
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2),
    }
)


def entry(*shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}


@FUZZ
@given(st.dictionaries(st.sampled_from([DOWN, UP, f"{MODULE}.alpha", "__metadata__", ""]), ENTRIES, max_size=4))
def test_a_header_that_lies_is_refused(tmp_path, header):
    (tmp_path / "lora.safetensors").write_bytes(with_header(header, bytes(64)))
    read_or_refused(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        with_header(b'{"a":' * 100_000),
        with_header(b"[" * 100_000),
        with_header(b'{"a": 1}'),
        with_header({DOWN: entry(2**31, 2**31)}, bytes(64)),
        with_header({DOWN: entry(4, 4), UP: entry(4, 4)}, bytes(64)),
        b"\x00" * 64,
        b"PK\x03\x04" + bytes(64),
        pickle.dumps({"a": 1}),
    ],
    ids=["endless header", "deep", "deeper", "no entry", "overflow", "overlap", "zeros", "zip", "pickle"],
)  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "lora.safetensors").write_bytes(content)
    assert "truncated or not a safetensors file" in refusal(tmp_path / "lora.safetensors")


def test_a_sparse_file_of_two_gigabytes_is_refused_before_it_is_read(tmp_path):
    """On the disk it takes a block; its header is honest."""
    size, path = 2**31, tmp_path / "lora.safetensors"
    shape = [2**14, 2**15]
    header = {
        DOWN: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
        UP: {"dtype": "F32", "shape": [8, 2], "data_offsets": [size, size + 64]},
    }
    content = with_header(header)
    try:
        with path.open("wb") as file:
            file.write(content)
            file.truncate(len(content) + size + 64)
    except OSError:
        pytest.skip("this file system keeps no such file")
    message = refusal(path)
    assert DOWN in message and "(16384, 32768)" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [DOWN, UP, f"{MODULE}.alpha"])
def test_nan_and_infinity_are_refused_with_the_key(tmp_path, dtype, value, key):
    tensors = {name: tensor.to(dtype) for name, tensor in pair().items()} | {f"{MODULE}.alpha": torch.tensor(2.0)}
    tensors[key].view(-1)[-1] = value
    save_file(tensors, tmp_path / "lora.safetensors")
    assert key in refusal(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float64, 1e200), (torch.float64, -1e39), (torch.float32, 1e38), (torch.float32, 2e6),
        (torch.bfloat16, 1e30),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", [DOWN, UP])
def test_numbers_that_no_training_gives_are_refused_with_the_key(tmp_path, dtype, value, key):
    tensors = {name: tensor.to(dtype) for name, tensor in pair().items()}
    tensors[key].view(-1)[-1] = value
    save_file(tensors, tmp_path / "lora.safetensors")
    message = refusal(tmp_path / "lora.safetensors")
    assert key in message and "expected numbers up to 1e+06" in message


def test_factors_whose_product_no_training_gives_are_refused(tmp_path):
    save_file({DOWN: torch.full((2, 8), 1e5), UP: torch.full((8, 2), 1e5)}, tmp_path / "lora.safetensors")
    assert f"{MODULE}: its change of the weight comes to 1e+10" in refusal(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("part", ["lora_B.bias", "dora_scale", "lora_magnitude_vector"])
@pytest.mark.parametrize("difference", [{}, {f"{MODULE}.diff_b": torch.ones(8)}])
def test_a_part_of_a_lora_without_the_lora_is_refused_by_its_key(tmp_path, part, difference):
    save_file({f"{MODULE}.{part}": torch.ones(8), **difference}, tmp_path / "lora.safetensors")
    message = refusal(tmp_path / "lora.safetensors")
    assert f"{MODULE}.{part}" in message and "without the LoRA it belongs to" in message


@pytest.mark.parametrize("alpha", [1e300, 1e12])
def test_an_alpha_that_no_training_gives_is_refused(tmp_path, alpha):
    save_file(pair() | {f"{MODULE}.alpha": torch.tensor(alpha, dtype=torch.float64)}, tmp_path / "lora.safetensors")
    assert "alpha" in refusal(tmp_path / "lora.safetensors")
    torch.save(pair() | {f"{MODULE}.alpha": alpha}, tmp_path / "lora.bin")
    assert "alpha" in refusal(tmp_path / "lora.bin")
    with pytest.raises(BlendError, match="typed"):
        read_adapter(tmp_path / "lora.bin", scale=alpha)


@pytest.mark.parametrize("alpha", [10**400, 1 + 2j, torch.tensor(1 + 2j), "4", True, None, [4.0]])
def test_an_alpha_that_is_no_number_is_refused(tmp_path, alpha):
    torch.save(pair() | {f"{MODULE}.alpha": alpha}, tmp_path / "lora.bin")
    assert f"{MODULE}.alpha" in refusal(tmp_path / "lora.bin")


@pytest.mark.parametrize("alpha", ["1e400", "9" * 400, "true", "[4]", '{"a": 1}'])
def test_an_alpha_in_a_config_that_is_no_number_is_refused(tmp_path, alpha):
    (tmp_path / "adapter_config.json").write_text(f'{{"r": 2, "lora_alpha": {alpha}}}')
    save_file(pair(), tmp_path / "lora.safetensors")
    assert "adapter_config.json: alpha is" in refusal(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "C64", "BOOL", "U8", "I64"])
def test_factors_of_a_type_without_arithmetic_are_refused_or_widened(tmp_path, dtype):
    size = {"F4": 8, "C64": 128, "I64": 128}.get(dtype, 16)
    header = {
        name: {"dtype": dtype, "shape": [4, 4], "data_offsets": [i * size, (i + 1) * size]}
        for i, name in enumerate((DOWN, UP))
    }
    (tmp_path / "lora.safetensors").write_bytes(with_header(header, bytes([127] * 2 * size)))
    adapter = read_or_refused(tmp_path / "lora.safetensors")
    assert (adapter is not None) is (dtype == "F8_E8M0")


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Whoever runs the tests as root may read all files, so the system's answer is given by hand."""
    save_file(pair(), tmp_path / "lora.safetensors")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)
    message = refusal(tmp_path / "lora.safetensors")
    assert "Permission denied" in message and "Check its permissions" in message


@pytest.mark.parametrize("name", ["a" * 300 + ".safetensors", "a\0b.safetensors", "loop.safetensors"])
def test_a_name_that_the_system_does_not_take_is_refused(tmp_path, name):
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    with pytest.raises(BlendError, match=r"cannot be read|there is no file"):
        read_adapter(f"{tmp_path}/{name}")


@pytest.mark.slow
def test_more_pairs_than_any_model_has_layers_are_refused_at_once(tmp_path):
    one = torch.ones(1, 1)
    save_file(
        {f"blocks.{i}.to_q.lora_{role}.weight": one.clone() for i in range(50_000) for role in "AB"},
        tmp_path / "lora.safetensors",
    )
    start = time.monotonic()
    assert "100000 keys" in refusal(tmp_path / "lora.safetensors")
    assert time.monotonic() - start < 3


FRAGMENTS = [
    *("unet.", "lora_unet_", "a", "to_q", ".processor", "_lora", ".", "_"),
    *("..", "/", "C:\\", "%s", "{0}", "é", "\x00", "\n", "\U0001f600"),
]
ROLES = [
    *("lora_A.weight", "lora_B.weight", "lora_A.x.weight", "lora_down.weight", "lora_up.weight", "lora_mid.weight"),
    *("lora.down.weight", "lora.up.weight", "alpha", "hada_w1_a", "weight", "."),
]
KEYS = st.builds("{}.{}".format, st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join), st.sampled_from(ROLES))
TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.sampled_from([0, 1, 2, 3]), max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool]),
)


@pytest.mark.slow
@FUZZ
@given(st.dictionaries(KEYS, TENSORS, min_size=1, max_size=6))
def test_keys_and_shapes_of_any_kind_read_or_are_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "lora.safetensors")
    read_or_refused(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    "path", ["../../../etc/passwd", "/etc/passwd", "C:\\Windows\\x", "a/../b", "~/x", "$(touch x)"]
)
def test_a_key_that_is_a_path_is_a_name_and_nothing_else(tmp_path, path):
    before = sorted(tmp_path.rglob("*"))
    save_file(
        {f"{path}.lora_A.weight": torch.ones(2, 8), f"{path}.lora_B.weight": torch.ones(8, 2)}, tmp_path / "l.sft"
    )
    assert list(read_adapter(tmp_path / "l.sft").modules) == [path]
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "l.sft"]


@pytest.mark.parametrize(
    "key",
    ["unet." * 200_000, ".processor." * 20_000 + "_lora.down.weight", "_orig_mod." * 50_000, "a" * 10**6],
    ids=["prefixes", "processors", "wrappers", "letters"],
)
def test_a_key_without_end_takes_no_time(tmp_path, key):
    save_file({**pair(), key: torch.ones(1)}, tmp_path / "lora.safetensors")
    start = time.monotonic()
    assert key[:60] in refusal(tmp_path / "lora.safetensors")
    assert time.monotonic() - start < 2


def test_a_small_core_and_a_long_down_fold_into_nothing_large(tmp_path):
    stem = "lora_unet_mid_block_resnets_0_conv1"
    kernel, width = 2000, 100_000
    tensors = {
        f"{stem}.lora_down.weight": torch.ones(1, width, 1, 1),
        f"{stem}.lora_mid.weight": torch.ones(1, 1, kernel, 1),
        f"{stem}.lora_up.weight": torch.ones(8, 1, 1, 1),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    assert "lora_mid has shape (1, 1, 2000, 1)" in refusal(tmp_path / "lora.safetensors")


# --- pickle containers


class Calls:
    """A pickle that calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def test_no_pickle_calls_a_function(tmp_path):
    import builtins
    import os
    import subprocess

    witness = tmp_path / "witness"
    for i, function in enumerate([os.system, builtins.eval, builtins.exec, builtins.open, subprocess.call, getattr]):
        path = tmp_path / f"lora{i}.bin"
        torch.save({**pair(), "x": Calls(function, f"touch {witness}")}, path)
        assert "holds Python objects besides tensors" in refusal(path)
        path.write_bytes(pickle.dumps({"x": Calls(function, f"touch {witness}")}))
        refusal(path)
    assert not witness.exists()


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    torch.save({DOWN: torch.zeros(1024, 4096), UP: torch.zeros(4096, 1024)}, tmp_path / "plain.bin")
    bomb = tmp_path / "lora.bin"
    plain, packed = zipfile.ZipFile(tmp_path / "plain.bin"), zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED)
    with plain, packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert bomb.stat().st_size < 100_000
    assert re.search(r"unpacks from \d+ to 33\d+ bytes", refusal(bomb))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(2**20, 2**20),
        torch.ones(2, 8).to_sparse(),
        torch.empty(2**20, 2**20, device="meta"),
    ],
    ids=["one number", "sparse", "no device"],
)
def test_a_tensor_without_its_numbers_is_refused_with_its_key(tmp_path, tensor):
    torch.save({**pair(), DOWN: tensor}, tmp_path / "lora.bin")
    message = refusal(tmp_path / "lora.bin")
    assert DOWN in message or "Python objects" in message


@pytest.mark.slow
@FUZZ
@given(st.data())
def test_a_pickle_with_changed_bytes_reads_or_is_refused(tmp_path, data):
    path = tmp_path / "lora.bin"
    torch.save(pair(), path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    read_or_refused(path)


# --- configs beside the file, and the header's text

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
CONFIG_NAMES = st.sampled_from(
    ["r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "peft_type", "init_lora_weights", "lora_params"]
)


@pytest.mark.slow
@FUZZ
@given(st.dictionaries(CONFIG_NAMES, JSON, max_size=5), st.sampled_from(["adapter_config.json", "lora_config.json"]))
def test_a_config_of_anything_reads_or_is_refused(tmp_path, config, name):
    for other in ("adapter_config.json", "lora_config.json"):
        (tmp_path / other).unlink(missing_ok=True)
    (tmp_path / name).write_text(json.dumps(config))
    save_file(pair(), tmp_path / "lora.safetensors")
    try:
        read_adapter(tmp_path / "lora.safetensors")
    except BlendError as error:
        assert "config" in str(error)


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**5, "", "\x00", '{"lora_alpha": ' + "9" * 5000 + "}"])
def test_a_config_that_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    save_file(pair(), tmp_path / "lora.safetensors")
    with pytest.raises(BlendError, match=r"adapter_config\.json"):
        read_adapter(tmp_path / "lora.safetensors")


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*x", ".*.*.*.*.*x", "(((", "a" * 1000])
def test_a_pattern_that_would_never_end_is_refused(tmp_path, pattern):
    config = {"r": 2, "lora_alpha": 4, "alpha_pattern": {pattern: 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    long_name = ("a" * 60 + ".") * 6
    save_file({f"{long_name}{key}": tensor for key, tensor in pair().items()}, tmp_path / "lora.safetensors")
    start = time.monotonic()
    with pytest.raises(BlendError, match="pattern"):
        read_adapter(tmp_path / "lora.safetensors")
    assert time.monotonic() - start < 2


@pytest.mark.slow
@FUZZ
@given(st.one_of(JSON.map(json.dumps), st.text(max_size=20), st.just("[" * 10**5)))
def test_a_header_of_any_text_gives_rewards_and_a_number(tmp_path, text):
    names = ("rewards", "kl_weight", "eta")
    metadata = {f"diffusion_blend.{name}": text for name in names}
    path = tmp_path / "lora.safetensors"
    save_file(pair(), path, metadata)
    adapter = read_or_refused(path)
    for number in ("kl_weight", "eta"):
        try:
            assert getattr(adapter, number) is None or getattr(adapter, number) > 0
        except BlendError as error:
            assert "header says" in str(error)
