import json
from dataclasses import replace

import pytest
import torch

from condec.basis.errors import StoreError
from condec.basis.files import read_checked, with_checksum
from condec.dictionary import PCA, fit, load_dictionary
from condec.dictionary.base import saved_digest
from small_runs import contents


@pytest.fixture
def folder(tmp_path):
    fit(PCA(2), _rows()).save(tmp_path / "pca")
    return tmp_path / "pca"


def _rows(seed=0):
    return torch.rand(40, 5, generator=torch.Generator().manual_seed(seed))


def rewrite(folder, **changes):
    """Change a record, with the digest that it then has."""
    file = folder / "dictionary.json"
    record = read_checked(file.read_bytes()) | changes
    file.write_bytes(with_checksum({**record, "checksum": ""}))


def test_a_flipped_bit_of_the_record_is_found(folder):
    file = folder / "dictionary.json"
    file.write_text(file.read_text().replace('"scale": 0.', '"scale": 1.'))
    with pytest.raises(
        StoreError, match=r"dictionary\.json: .* the checksum that it states.*Fit aga"
    ):
        load_dictionary(folder)


@pytest.mark.parametrize("number", [1, 2])
def test_dictionaries_of_earlier_versions_are_read(folder, number):
    file = folder / "dictionary.json"
    record = read_checked(file.read_bytes())
    file.write_text(json.dumps(record | {"format": number}))
    assert load_dictionary(folder).digest == saved_digest(folder)


def test_the_digest_is_that_of_the_files(folder, tmp_path):
    found = load_dictionary(folder)
    assert found.digest == saved_digest(folder)
    other = fit(PCA(2), _rows(1)).dictionary
    assert other.digest != found.digest
    assert replace(found, scale=2.0).digest != found.digest
    assert saved_digest(tmp_path) == ""


def test_files_and_nothing_else(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["dictionary.json", "dictionary.safetensors"]
    record = json.loads((folder / "dictionary.json").read_text())
    assert record["learner"] == {"name": "PCA", "n_modes": 2}
    assert record["training"]["metrics"]["held_out"]["n_rows"] == 8


def test_a_bare_dictionary_can_be_saved(folder, tmp_path):
    from condec.dictionary import Dictionary

    fitted = load_dictionary(folder)
    bare = Dictionary(fitted.learner, fitted.tensors, fitted.scale)
    bare.save(tmp_path / "bare")
    again = load_dictionary(tmp_path / "bare")
    assert again.training is None
    assert torch.equal(again.atoms, fitted.atoms)


def test_missing_folder(tmp_path):
    with pytest.raises(
        StoreError, match=r"dictionary\.json: there is no such file; expected the record"
    ):
        load_dictionary(tmp_path / "nothing")


def test_tensors_of_another_fit(folder, tmp_path):
    fit(PCA(2), _rows(1)).save(tmp_path / "other")
    other = (tmp_path / "other" / "dictionary.safetensors").read_bytes()
    (folder / "dictionary.safetensors").write_bytes(other)
    with pytest.raises(StoreError, match=r"does not belong to its dictionary\.json"):
        load_dictionary(folder)


def test_not_json(folder):
    (folder / "dictionary.json").write_text("{")
    with pytest.raises(
        StoreError, match=r"dictionary\.json: cannot be read .*JSONDecodeError.*Fit again"
    ):
        load_dictionary(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 99}'])
def test_another_format(folder, content):
    (folder / "dictionary.json").write_text(content)
    with pytest.raises(StoreError, match="expected a dictionary of format 3"):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learner": {"name": "Other"}}, "expected one of .* got 'Other'"),
        ({"learner": {"name": "PCA", "n_modes": 3}}, r"atoms of shape \(2, 5\)"),
        ({"learner": None}, "Type"),
        ({"training": {}}, "KeyError"),
    ],
)
def test_record_that_does_not_fit(folder, change, message):
    rewrite(folder, **change)
    with pytest.raises(StoreError, match=message):
        load_dictionary(folder)


def test_file_that_is_not_safetensors(folder):
    import hashlib

    (folder / "dictionary.safetensors").write_bytes(b"no tensors")
    rewrite(folder, sha256=hashlib.sha256(b"no tensors").hexdigest())
    with pytest.raises(StoreError, match=r"cannot be read as tensors of .* .SafetensorError"):
        load_dictionary(folder)


def test_later_fit_replaces_an_earlier_one(folder):
    later = fit(PCA(2), _rows(1))
    (folder / "dictionary.safetensors.0a0a0a0a.partial").write_bytes(b"killed")
    later.save(folder)
    assert torch.equal(load_dictionary(folder).atoms, later.dictionary.atoms)
    assert len(list(folder.iterdir())) == 2


def test_nothing_is_half_written(folder, monkeypatch):
    before = contents(folder)

    def full(path, content, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("condec.dictionary.base.write_file", full)
    with pytest.raises(StoreError, match="the disk is full"):
        fit(PCA(2), _rows(1)).save(folder)
    assert contents(folder) == before


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="dictionary: cannot write"):
        fit(PCA(2), _rows()).save(tmp_path / "taken")
