"""Places in an object store are paths of whole objects; no secret stands in one or a message."""

import copy
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from condec.basis import objects
from condec.basis.errors import DependencyError, OptionError, StoreError
from condec.basis.files import reading, remove_whatever, store_path, user_path, write_file, writing
from condec.basis.objects import ObjectPath, at_once, object_path
from object_server import SECRET, ObjectServer, settings


@pytest.fixture
def bucket(object_server: ObjectServer) -> Iterator[ObjectPath]:
    """A bucket that exists, and the settings of this test alone."""
    with settings(object_server.url):
        place = object_path(f"s3://tests/{os.urandom(4).hex()}")
        assert place is not None
        yield place


def test_an_address_is_a_path_with_all_names_in_it() -> None:
    place = store_path("s3://bucket/a b/c.zarr")
    assert str(place) == "s3://bucket/a b/c.zarr"
    assert str(place / "d" / "e.0") == "s3://bucket/a b/c.zarr/d/e.0"
    assert (place / "d").parent == place == store_path(Path("s3://bucket/a b/c.zarr"))
    assert place.name == "c.zarr"
    assert (place / "d" / "e").relative_to(place).as_posix() == "d/e"
    assert place.absolute() is place
    assert place.is_absolute()
    assert copy.deepcopy(place) == place
    assert store_path(str(place)) == store_path(place) == place
    assert store_path("a/s3/b") == Path("a/s3/b")
    assert str(store_path("memory://a")) == "memory://a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://me:hidden@bucket/a", r"'s3:/+\.\.\.@bucket/a': expected no user, password, query"),
        ("https://host/a?X-Amz-Signature=hidden", r"'https://host/a\?\.\.\.': expected no user"),
        ("gs://bucket/a#hidden", r"'gs://bucket/a\?\.\.\.': expected no user"),
        ("s3://bucket", r"expected s3://BUCKET/NAME, gs://BUCKET/NAME, az://CONTAINER/NAME"),
        ("s3://bucket/../a", "expected s3://BUCKET/NAME"),
        ("s3://bucket/a\0b", "expected s3://BUCKET/NAME"),
        ("memory://", "expected .* memory://NAME"),
        ("ftp://host/a", "expected s3://BUCKET/NAME"),
        ("file:///a", "expected s3://BUCKET/NAME"),
    ],
)
def test_addresses_that_are_refused(text: str, message: str) -> None:
    for given in (text, text.replace("://", ":/", 1)) if text[:2] == "s3" else (text,):
        with pytest.raises(OptionError, match=message) as caught:
            store_path(given)
        assert "hidden" not in str(caught.value)


def test_what_needs_a_file_refuses_an_address() -> None:
    with pytest.raises(
        OptionError, match=r"s3://b/x.npz: expected a place on this machine, to whi"
    ):
        user_path("s3://b/x.npz")
    place = store_path("s3://bucket/a")
    for use in (os.stat, os.listdir, place.stat, place.iterdir().__next__, place.read_text,
                lambda: place.open("w"), lambda: place.rename("b"), place.rmdir):  # fmt: skip
        with pytest.raises(StoreError, match="s3://bucket/a: expected a place on this machine, no"):
            use(place) if use in (os.stat, os.listdir) else use()  # type: ignore[operator]


def test_one_can_only_read_by_http() -> None:
    place = store_path("https://host/a")
    for use in (place.unlink, lambda: write_file(place, b"")):
        with pytest.raises(
            StoreError, match=r"https://host/a: by http.s. one only reads; write to"
        ):
            use()
    with pytest.raises(StoreError, match=r"by http.s. one only reads"):
        store_path("http://host/a", write=True)
    assert not place.is_dir()  # nothing can be listed


def test_objects_are_written_read_listed_and_removed(place: Path) -> None:
    names = ("a/x.json", "a/y%3Az.json", "a/b c/ü+&=.json", "ab")
    for name in names:
        write_file(place / name, name.encode())
    assert [(place / name).read_bytes() for name in names] == [name.encode() for name in names]
    found = sorted(str(one.relative_to(place)) for one in place.rglob("*.json"))
    assert found == sorted(names[:3])
    assert sorted(one.name for one in place.glob("a/*.json")) == ["x.json", "y%3Az.json"]
    assert [one.name for one in place.glob("*")] in (["ab"], ["a", "ab"], ["ab", "a"])  # no folders
    assert [(place / name).is_file() for name in ("ab", "a", "x")] == [True, False, False]
    assert [(place / name).is_dir() for name in ("ab", "a", "x")] == [False, True, False]
    assert [(place / name).exists() for name in ("ab", "a", "x")] == [True, True, False]
    assert not (place / "ab").is_symlink()
    (place / "new").mkdir(parents=True, exist_ok=True)
    write_file(place / "ab", b"other")
    with (place / "ab").open("rb") as file:
        assert file.read() == b"other"
    remove_whatever(place / "ab")
    remove_whatever(place / "ab")
    with pytest.raises(FileNotFoundError):
        (place / "ab").read_bytes()
    assert at_once(str, range(40), place) == [str(n) for n in range(40)]


def test_what_is_to_be_made_once_is_made_once(bucket: ObjectPath) -> None:
    for some in (bucket / "a", store_path(f"memory://{bucket.name}")):
        assert isinstance(some, ObjectPath)
        some.create(b"1")
        with pytest.raises(FileExistsError, match="there is such an object"):
            some.create(b"2")
        assert some.read_bytes() == b"1"


def test_failures_are_said_without_secrets(
    bucket: ObjectPath, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = store_path("s3://no-such-bucket/a")
    with pytest.raises(StoreError, match="s3://no-such-bucket/a: there is no such file; expected"):
        with reading(missing, "a thing", "Make it."):
            missing.read_bytes()
    with pytest.raises(StoreError, match=r"there is no such bucket.*s3://no-such-bucket/a"):
        with writing("here"):
            missing.write_bytes(b"")
    with object_server.failing({"503": 1.0}, 0):
        with pytest.raises(StoreError, match=r"cannot write .*503.*see to the connection to the o"):
            with writing("here"):
                bucket.write_bytes(b"")
    monkeypatch.setattr(object_server, "fault", lambda request: "403")
    for use in (bucket.read_bytes, lambda: bucket.write_bytes(b""), bucket.exists):
        with pytest.raises(StoreError, match=r"403.*llow this user to use it") as caught:
            with reading(bucket, "a thing", "Make it."):
                use()
        said = "".join(traceback.format_exception(caught.value))
        assert SECRET not in said
        assert "StringToSign" not in said


def test_credentials_come_from_a_profile_or_are_asked_for(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write_bytes(b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    objects._store.cache_clear()
    with pytest.raises(StoreError, match=r"s3://tests: no credentials .* set AWS_PROFILE, AWS_ACC"):
        bucket.read_bytes()
    text = f"[mine]\naws_access_key_id = id\naws_secret_access_key = {SECRET}\n"
    (tmp_path / "AWS_SHARED_CREDENTIALS_FILE").write_text(text)
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(StoreError, match=r"no credentials .*\(other\) could not be found.* set "):
        bucket.read_bytes()
    with pytest.raises(StoreError, match=r"az://some: no credentials .*Account must be specified"):
        store_path("az://some/a").read_bytes()
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert bucket.read_bytes() == b"1"


def test_the_library_is_asked_for(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    objects._store.cache_clear()
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(DependencyError, match=r"s3://tests: .* pip install 'condec\[cloud\]'"):
        bucket.read_bytes()


def _ask(place: ObjectPath, said: Any) -> None:
    try:
        place.read_bytes()
    except StoreError as error:
        said.put(str(error))


def test_a_forked_process_is_refused_and_does_not_hang(bucket: ObjectPath) -> None:
    bucket.write_bytes(b"1")
    fork = multiprocessing.get_context("fork")
    said: Any = fork.SimpleQueue()
    child = fork.Process(target=_ask, args=(bucket, said))
    child.start()
    assert "answer no process that was forked from one that asked" in said.get()
    child.join()
