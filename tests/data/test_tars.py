"""Tars of WebDataset: the ids, labels and digest of the same folder, and every damage named."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from condec.basis.errors import DataError, OptionError
from condec.data import load_data
from condec.data.tars import files_of
from encoded import check_folder, pixels, png, write_folder, write_tar


def test_a_tar_of_a_folder_is_that_folder(tmp_path: Path) -> None:
    folder = load_data(f"folder:{write_folder(tmp_path / 'photos')}")
    tar = load_data("webdataset:a.tar", folder=write_tar(tmp_path / "a.tar").parent)
    check_folder(tar, folder)


def test_shards_by_range_and_star_with_labels_beside(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-008.tar", {"a.cls": b"3\n", "a.png": png(0), "b.png": png(1)})
    write_tar(tmp_path / "s-009.tar", {"._c.png": b"", "x.pyd": b"\x80\x04N.", "c.txt": b"no"})
    write_tar(tmp_path / "s-010.tar", {"./c.png": png(2), "c.json": b'{"label": 1, "kind": "ape"}'})
    for pattern in ("s-{008..010}.tar", "s-*.tar"):
        inputs = load_data(f"webdataset:{pattern}", folder=tmp_path)
        assert inputs.ids == ("a.png", "b.png", "c.png")
        assert inputs.labels is not None
        assert inputs.labels.tolist() == [3, -1, 1]
        assert np.array_equal(inputs.read(2).numpy(), pixels(2))
    named = load_data("webdataset:s-010.tar?label=json.kind", folder=tmp_path)
    assert named.label_names == ("ape",)


def test_a_text_beside_an_image_is_a_class_where_that_is_said(tmp_path: Path) -> None:
    members = {"a.png": png(0), "a.txt": b"zebra", "a.cls": b"7", "a.mask.png": png(1)}
    write_tar(tmp_path / "a.tar", members | {"b.png": png(2), "b.txt": b"ape"})
    inputs = load_data("webdataset:a.tar?label=txt", folder=tmp_path)
    assert inputs.label_names == ("ape", "zebra")
    assert len(inputs) == 2


def test_a_damaged_member_is_named_and_the_others_load(tmp_path: Path) -> None:
    large = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(large, "PNG")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"  # PIL would run Ghostscript
    members = {"a.png": png(0), "b.png": png(1)[:40], "c.png": large.getvalue(), "d.jpg": eps}
    inputs = load_data(f"webdataset:{write_tar(tmp_path / 'a.tar', members)}")
    assert np.array_equal(inputs.read(0).numpy(), pixels(0))
    for row in (1, 2, 3):
        with pytest.raises(DataError, match=rf"a.tar: {inputs.ids[row]}: cannot be read as an im"):
            inputs.load(row)
    assert inputs.fingerprint


def damaged(file: Path, kind: str) -> None:
    content = bytearray(write_tar(file).read_bytes())
    if kind == "cut":
        del content[700:]
    elif kind == "header":  # of the second member
        content[1024 + 100] ^= 255
    elif kind == "packed":
        write_tar(file, mode="w:gz")
        return
    else:
        content = bytearray(b"text")
    file.write_bytes(content)


def test_ordinary_members_pass_by_tarfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, asked = tarfile.TarFile.next, []
    monkeypatch.setattr(tarfile.TarFile, "next", lambda tar: asked.append(tar) or plain(tar))
    assert len(load_data(f"webdataset:{write_tar(tmp_path / 'a.tar')}")) == 3
    assert len(asked) == 1  # when it is opened


def test_long_names_and_links_are_those_of_tarfile(tmp_path: Path) -> None:
    long, deep = f"{'long' * 40}.png", f"{'a' * 90}/{'b' * 60}.png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        names = ["a.png", "ä.png", deep, *([long] if form != tarfile.USTAR_FORMAT else [])]
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(png(0))
                tar.addfile(member, io.BytesIO(png(0)))
            link = tarfile.TarInfo("c.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        inputs = load_data("webdataset:a.tar", folder=tmp_path)
        assert inputs.ids == tuple(names)
        assert all(np.array_equal(inputs.read(row).numpy(), pixels(0)) for row in range(len(names)))


@pytest.mark.parametrize("kind", ["cut", "header", "packed", "text", "gone"])
def test_damaged_tars_are_refused(kind: str, tmp_path: Path) -> None:
    if kind != "gone":
        damaged(tmp_path / "a.tar", kind)
    message = "there is no such file" if kind == "gone" else "cannot be read as a tar"
    with pytest.raises(DataError, match=f"a.tar: {message}.* whole tar, not compressed"):
        load_data("webdataset:a.tar", folder=tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(0), "a.jpg": png(1)}, "a.jpg is another image of a; .*one image a sample"),
        ({"my.photo.png": png(0)}, "my.photo.png: its name has more than one dot"),
        ({"a.png": png(0), "a.cls": b"\xff"}, "cannot be read as a tar of images"),
        ({"a.png": png(0), "a.cls": b"1.5"}, "labels: expected whole numbers.*'1.5' in a.png"),
        ({"a.png": png(0), "a.json": b'{"label": [1]}'}, r"a number or a name; label is \[1\]"),
        ({"3/a.png": png(0), "7/b.png": png(0)}, "folders '3', '7' would be numbered '0', '1'"),
        ({"a.txt": b"no image"}, "expected at least one sample"),
    ],
)
def test_what_is_not_clear_is_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load_data(f"webdataset:{write_tar(tmp_path / 'a.tar', members)}")


def test_an_image_whose_tar_is_gone_meanwhile(tmp_path: Path) -> None:
    inputs = load_data(f"webdataset:{write_tar(tmp_path / 'a.tar')}")
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a.tar: cat/a.png: there is no such file"):
        inputs.load(0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("webdataset:a-{0..9999999}.tar", "names 10000000 files; expected 1 to 1,000,000"),
        ("webdataset:a-{9..3}.tar", "names 0 files"),
        ("webdataset:none-*.tar", "no file is named so"),
        ("webdataset:a.tar?label=png", "label must be cls, txt or json.ENTRY; got 'png'"),
        ("webdataset:a.tar?id=x", "expected no key but label; got id"),
    ],
)
def test_sources_that_name_nothing(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        load_data(source, folder=tmp_path)


def test_ranges_keep_their_zeros(tmp_path: Path) -> None:
    found = files_of("{a}{0..1}-{08..10}.tar", tmp_path)
    assert [file.name for file in found][::5] == ["{a}0-08.tar", "{a}1-10.tar"]


def test_a_tar_may_begin_with_its_folder_or_a_long_name(tmp_path: Path) -> None:
    for first in ("photos", f"{'long' * 40}/0.png"):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            member = tarfile.TarInfo(first)
            content = png(0) if first.endswith(".png") else b""
            member.type, member.size = (
                (tarfile.REGTYPE if content else tarfile.DIRTYPE),
                len(content),
            )
            tar.addfile(member, io.BytesIO(content))
            last = tarfile.TarInfo("photos/1.png")
            last.size = len(png(1))
            tar.addfile(last, io.BytesIO(png(1)))
        inputs = load_data("webdataset:a.tar", folder=tmp_path)
        assert len(inputs) == 1 + first.endswith(".png")
        assert np.array_equal(inputs.read(len(inputs) - 1).numpy(), pixels(1))
