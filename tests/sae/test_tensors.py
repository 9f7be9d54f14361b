"""Weights stay in their files, in half precision as stored; changed weights go into a file."""

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
from saefeat.sae.formats.tensors import read_weights, sae_tensors, to_float32, with_unit_decoder
from saefeat.steering.changes import project_onto_units

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


def test_arrays_at_odd_places_of_an_archive_are_copied_to_even_ones(tmp_path):
    for name in ("a", "ab", "abc", "abcd"):
        np.savez(tmp_path / "a.npz", **{name: ARRAYS["matrix"]})
        found = read_weights(tmp_path / "a.npz")[name]
        assert found.data_ptr() % 4 == 0
        assert torch.equal(found, torch.from_numpy(ARRAYS["matrix"]))


def test_an_array_with_a_flipped_bit_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data[archive.getinfo("columns.npy").header_offset - 5] ^= (
            1  # in the data of the member before
        )
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"a.npz cannot be read \(matrix.npy is damaged\)"):
        read_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_of_an_archive_only_arrays_of_numbers_are_read(tmp_path, write):
    write(
        tmp_path / "a.npz",
        **ARRAYS,
        text=np.array(["layer 3"]),
        things=np.array([{}], dtype=object),
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.txt", "trained on a Monday")
        archive.writestr("empty.npy", "")
        archive.mkdir("folder")
    assert read_weights(tmp_path / "a.npz").keys() == ARRAYS.keys()


@pytest.mark.parametrize("kind", ["sparse", "quantised", "meta"])
@pytest.mark.filterwarnings("ignore")
def test_only_plain_tensors_are_read(tmp_path, kind):
    odd = {
        "sparse": torch.eye(3).to_sparse,
        "meta": lambda: torch.ones(3, device="meta"),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }[kind]()
    torch.save({"a": torch.ones(3), "b": odd}, tmp_path / "a.pt")
    with pytest.raises(
        UserError, match=r"a\.pt: b is sparse, quantised or without data; save it"
    ) as told:
        read_weights(tmp_path / "a.pt")
    assert "\n" not in str(told.value)


def test_parameters_are_read_as_tensors(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(3))}, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")["a"]
    assert type(found) is torch.Tensor and not found.requires_grad


def test_the_first_sentence_of_an_error_of_torch_is_shown(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(UserError) as told:
        read_weights(path)
    said = "PytorchStreamReader failed reading zip archive: failed finding central directory"
    assert str(told.value) == f"{path} cannot be read ({said}); fetch or save it again"


def test_a_directory_in_place_of_a_file_is_reported(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(UserError, match=r"a\.safetensors is a directory and should be the file"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype):
    given = {"W": torch.ones(3, 5, dtype=dtype), "k": torch.tensor(4)}
    with pytest.raises(
        UserError, match=f"a: W is {str(dtype)[6:]}, and weights are floating-point numbers"
    ):
        sae_tensors(given, {"W_enc": "W"}, "a")


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
def test_weights_without_units_or_coordinates_are_refused(shape):
    with pytest.raises(UserError, match=r"a: W of the shape .* is empty"):
        sae_tensors({"W": torch.ones(shape)}, {"W_enc": "W"}, "a")


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
    found = sae_tensors(loaded, {"W_enc": "W.T", "W_dec": "W", "b_enc": "b_enc"}, "a")
    assert found["W_enc"].dtype == found["W_dec"].dtype == dtype
    assert found["b_enc"].dtype == torch.float32
    assert found["W_enc"].data_ptr() == found["W_dec"].data_ptr() == loaded["W"].data_ptr()


def test_other_dtypes_become_float32():
    found = sae_tensors(
        {"W": torch.ones(5, 3, dtype=torch.float64)}, {"W_enc": "W.T", "W_dec": "W"}, "a"
    )
    assert found["W_enc"].dtype == found["W_dec"].dtype == torch.float32


def test_a_large_changed_matrix_is_mapped_from_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    small = torch.randn(7, 5)
    assert to_float32(small) is small
    monkeypatch.setattr(tensors, "_LARGE", 0)
    monkeypatch.setattr("saefeat.io._CHUNK_VALUES", 10)  # several parts
    for given in (small, small.T):
        found = to_float32(given)
        assert torch.equal(found, given) and found.data_ptr() != given.data_ptr()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_matrix_is_changed_part_by_part(tmp_path, monkeypatch):
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensors, "_LARGE", 0)
    monkeypatch.setattr("saefeat.io._CHUNK_VALUES", 10)
    given, sizes = torch.randn(7, 5).bfloat16(), []

    def twice(rows):
        sizes.append(rows.numel())
        return rows * 2

    found = to_float32(given, twice)
    assert torch.equal(found, given.float() * 2) and sum(sizes) == 35 and max(sizes) <= 10


def test_a_decoder_made_part_by_part_is_the_same(monkeypatch):
    def made():
        g = torch.Generator().manual_seed(0)
        found = {
            "W_enc": torch.randn(5, 9, generator=g),
            "W_dec": torch.randn(9, 5, generator=g).half(),
        }
        found["b_enc"] = torch.randn(9, generator=g)
        return with_unit_decoder(found)

    whole = made()
    monkeypatch.setattr(tensors, "_LARGE", 0)
    monkeypatch.setattr("saefeat.io._CHUNK_VALUES", 10)
    assert all(torch.equal(value, whole[name]) for name, value in made().items())


def test_without_room_for_a_file_a_matrix_stays_in_memory(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no directory")
    monkeypatch.setenv("SAEFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensors, "_LARGE", 0)
    given = torch.randn(3, 3)
    assert to_float32(given) is given


# --------------------------------------------------------------------------- SAEs of stored halves


def halved(activation, dtype):
    """An SAE with its matrices in half precision, and the same in float32."""
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(40, 8, generator=g)
    extra = {"threshold": torch.rand(40, generator=g)} if activation == "jumprelu" else {}
    if activation == "gated":
        extra = {"b_gate": torch.randn(40, generator=g), "gain": torch.rand(40, generator=g)}
    half = SAE(
        "a",
        "mlp_out@0",
        rows.T.to(dtype),
        torch.randn(40, generator=g),
        rows.to(dtype),
        torch.randn(8, generator=g),
        k=5 if activation in ("topk", "groupmax") else 0,
        activation=activation,
        **extra,
    )
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
        project_onto_units([(half, [3, 5])], torch.ones(8).double()),
        project_onto_units([(whole, [3, 5])], torch.ones(8).double()),
    )
    assert half.encode(x).values.dtype == half.decode(ours).dtype == torch.float32


def test_other_values_have_another_fingerprint():
    half, _ = halved("topk", torch.bfloat16)
    other = dataclasses.replace(half, W_dec=half.W_dec * 2)
    assert other.identity["fingerprint"] != half.identity["fingerprint"]
