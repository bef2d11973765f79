"""TensorFlow's checkpoint files, read without TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreign_weights import field, snappy, write_bundle
from landform.errors import CheckpointError
from landform.weights.tensor_bundle import _crc32c, _unsnap, read_bundle, read_variable


@pytest.fixture
def variables():
    generator = np.random.default_rng(0)
    names = [f"bert/encoder/layer_{i}/attention/{part}" for i in range(12) for part in ("k", "b")]
    found = {
        name: generator.normal(size=(3, k + 1)).astype(np.float32) for k, name in enumerate(names)
    }
    return found | {
        "global_step": np.array(34110, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "half": np.arange(4, dtype=np.float16),
    }


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_variables_come_back(tmp_path, variables, shards, compress):
    index = write_bundle(tmp_path / "m.ckpt-5", variables, shards=shards, compress=compress)
    found = read_bundle(index)
    assert set(found) == set(variables)
    for name, value in variables.items():
        tensor = read_variable(found[name])
        assert tensor.shape == value.shape
        np.testing.assert_array_equal(tensor.numpy(), value)


@given(st.binary(max_size=300).map(lambda data: data + data[:40] + data))
def test_snappy_undoes_what_was_done(data):
    assert _unsnap(snappy(data)) == data


def test_the_checksum_is_castagnoli():
    assert _crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


def test_every_cut_of_the_index_is_a_typed_error(tmp_path, variables):
    index = write_bundle(tmp_path / "m.ckpt", variables)
    content = index.read_bytes()
    for size in range(0, len(content), 97):
        index.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"m\.ckpt\.index is truncated or not the index"):
            read_bundle(index)


def test_a_flipped_bit_in_a_block_is_seen(tmp_path, variables):
    index = write_bundle(tmp_path / "m.ckpt", variables)
    content = bytearray(index.read_bytes())
    content[60] ^= 1
    index.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="checksum"):
        read_bundle(index)


def test_shards_that_are_cut_or_gone(tmp_path, variables):
    index = write_bundle(tmp_path / "m.ckpt", variables)
    found = read_bundle(index)
    shard = tmp_path / "m.ckpt.data-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-3])
    last = max(found.values(), key=lambda v: (v.offset, v.size))
    with pytest.raises(CheckpointError, match=f"variable {last.name} has .* bytes, expected"):
        read_variable(last)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*data-00000-of-00001"):
        read_variable(last)


def test_a_variable_in_slices_is_refused(tmp_path):
    index = write_bundle(
        tmp_path / "m", {"a": np.zeros(2, np.float32)}, extra=field(7, b"\x0a\x00")
    )
    with pytest.raises(CheckpointError, match="variable a is kept in slices"):
        read_variable(read_bundle(index)["a"])


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot read"):
        read_bundle(tmp_path / "nothing.index")
