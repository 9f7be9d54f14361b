"""Weights stay where and as they are: mapped from their files, half precision as stored, what is made here on disk."""

from __future__ import annotations

import dataclasses
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saefeat.dictionaries import ACTIVATIONS, SAE
from saefeat.io import UserError
from saefeat.sae.formats import tensors
from saefeat.sae.formats.tensors import canonical, read_weights, settled
from saefeat.steering import towards_with

ARRAYS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12, dtype=np.float64).reshape(4, 3)),
    "number": np.array(2.5, np.float32),
}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_archives_of_arrays_are_read_as_numpy_reads_them(tmp_path, write):
    write(tmp_path / "a.npz", **ARRAYS)
    found = read_weights(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == torch.from_numpy(array).dtype
        assert torch.equal(found[name], torch.from_numpy(array.copy()))


def test_archives_are_mapped_and_never_written_to(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **ARRAYS)
    before = path.read_bytes()
    found = read_weights(path)
    found["columns"].zero_()
    assert path.read_bytes() == before
    with path.open("r+b") as file:  # what is mapped changes with the file
        file.seek(before.index(ARRAYS["matrix"].tobytes()))
        file.write(np.float32(7).tobytes())
    assert found["matrix"][0, 0] == 7


def test_an_array_with_a_flipped_bit_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data[archive.getinfo("columns.npy").header_offset - 5] ^= 1  # in the data of the member before
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"a.npz cannot be read \(matrix.npy is damaged\)"):
        read_weights(tmp_path / "a.npz")


def test_archives_of_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="holds objects"):
        read_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_are_read_from_both_forms_of_torch(tmp_path, zipped):
    given = {"a": torch.randn(3, 4), "b": torch.randn(3).bfloat16()}
    torch.save(given, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "a.pt")
    assert all(torch.equal(found[name], given[name]) for name in given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrices_stay_in_the_dtype_of_their_file_and_where_they_are(tmp_path, dtype):
    given = {"W": torch.randn(5, 3).to(dtype), "b_enc": torch.randn(5).to(dtype)}
    save_file(given, tmp_path / "a.safetensors")
    loaded = read_weights(tmp_path / "a.safetensors")
    found = canonical(loaded, {"W_enc": "W.T", "W_dec": "W", "b_enc": "b_enc"}, "a")
    assert found["W_enc"].dtype == found["W_dec"].dtype == dtype
    assert found["b_enc"].dtype == torch.float32
    assert found["W_enc"].data_ptr() == found["W_dec"].data_ptr() == loaded["W"].data_ptr()


def test_other_dtypes_become_float32():
    found = canonical({"W": torch.ones(5, 3, dtype=torch.float64)}, {"W_enc": "W.T", "W_dec": "W"}, "a")
    assert found["W_enc"].dtype == found["W_dec"].dtype == torch.float32


def test_a_large_matrix_is_settled_in_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    small = torch.randn(7, 5)
    assert settled(small) is small
    monkeypatch.setattr(tensors, "_LARGE", 0)
    monkeypatch.setattr("saefeat.io._VALUES", 10)  # several parts
    for given in (small, small.T):
        found = settled(given)
        assert torch.equal(found, given) and found.data_ptr() != given.data_ptr()
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_room_for_a_file_a_matrix_stays_in_memory(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no directory")
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensors, "_LARGE", 0)
    given = torch.randn(3, 3)
    assert settled(given) is given


# --------------------------------------------------------------------------- SAEs of stored halves


def halved(activation, dtype):
    """An SAE with its matrices in half precision, and the same in float32."""
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(40, 8, generator=g)
    extra = {"threshold": torch.rand(40, generator=g)} if activation == "jumprelu" else {}
    if activation == "gated":
        extra = {"b_gate": torch.randn(40, generator=g), "gain": torch.rand(40, generator=g)}
    half = SAE("a", "mlp_out@0", rows.T.to(dtype), torch.randn(40, generator=g), rows.to(dtype),
               torch.randn(8, generator=g), k=5 if activation in ("topk", "groupmax") else 0, activation=activation,
               **extra)  # fmt: skip
    return half, dataclasses.replace(half, W_enc=half.W_enc.float(), W_dec=half.W_dec.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_stored_in_half_precision_give_the_results_of_their_values(activation, dtype):
    half, whole = halved(activation, dtype)
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(4))
    ours, expected = half.encode(x), whole.encode(x)
    assert torch.equal(ours.values, expected.values) and torch.equal(ours.indices, expected.indices)
    assert torch.equal(half.decode(ours), whole.decode(expected))
    assert torch.equal(half.decode(half.encode(x[:0])), whole.decode(whole.encode(x[:0])))
    assert half.identity == whole.identity
    assert torch.equal(
        towards_with([(half, [3, 5])], torch.ones(8).double()), towards_with([(whole, [3, 5])], torch.ones(8).double())
    )
    assert half.encode(x).values.dtype == half.decode(ours).dtype == torch.float32


def test_the_fingerprint_is_of_values(tmp_path):
    half, _ = halved("topk", torch.bfloat16)
    other = dataclasses.replace(half, W_dec=half.W_dec * 2)
    assert other.identity["fingerprint"] != half.identity["fingerprint"]
