"""The ledger of a run folder: what every result was made from, and the digests of its files.

One record a finished task, in ``tasks/``: its link, what it was made from (options of the plan, in
words; other results, by their digests), and the digests of its outputs. A result counts while its
files, and the results that it was made from, are those of its record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from condec.basis.digests import joint_digest, path_digest
from condec.basis.errors import StoreError, command
from condec.basis.files import (
    file_name,
    folder_in_place,
    read_checked,
    reading,
    remove_whatever,
    with_checksum,
    write_file,
    writing,
)
from condec.basis.records import Damage, short_repr

RECORDS: Final = "tasks"
"""Folder of the records."""


@short_repr
@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a finished task.

    `made_from` holds sections of the plan, as run.toml says them, and other plain values; `inputs`
    and `outputs` are digests of files and folders, by their paths in the run folder.
    """

    task: str
    link: str
    made_from: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class Ledger:
    """Records of the finished tasks of a run folder, read when first asked for.

    What other processes change meanwhile is not seen before `read_again`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, tuple[str, Entry]] = {}
        self.read_again()

    def read_again(self) -> None:
        """Look again at what lies here: other processes have written records."""
        self._entries: dict[str, Entry] | None = None
        self._of_output: dict[str, Entry] = {}
        self._inputs: dict[str, str] = {}
        self.damaged: dict[Path, Damage] = {}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Records that can be read, by their tasks; `damaged` says what is wrong with others."""
        if self._entries is None:
            self._entries, remedy = {}, self._remedy("")
            for file in sorted((self.folder / RECORDS).glob("*.json")):
                try:
                    with reading(file, "a record of a task", remedy):
                        entry = self._entry(file)
                except StoreError as error:
                    problem = f"no record of a task ({error.__cause__})"
                    self.damaged[file] = Damage(file, problem, remedy)
                else:
                    self._add(entry)
        return self._entries

    def _entry(self, file: Path) -> Entry:
        """Read a record, unless its file is as it was; ValueError and others where it is none."""
        of, (before, entry) = path_digest(file), self._read.get(file, ("", None))
        if entry is None or of != before:
            entry = Entry(**read_checked(file.read_bytes()))
            if self.file(entry.task) != file:
                raise ValueError(f"it is that of {entry.task!r}")
            for name in (*entry.inputs, *entry.outputs):
                if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                    raise ValueError(f"{name!r} is not in the run folder")
            dict(entry.made_from)
            self._read[file] = of, entry
        return entry

    def is_done(self, task: str, made_from: Mapping[str, Any], inputs: Iterable[Path]) -> bool:
        """Tell whether a task was finished with these, and its outputs are as it left them."""
        entry = self.entries.get(task)
        return (
            entry is not None
            and entry.made_from == made_from
            and entry.inputs == self._digests(inputs)
            and all(self.digest(self.folder / n) == d for n, d in entry.outputs.items())
        )

    def mark_done(
        self, task: str, link: str, made_from: Mapping[str, Any], inputs: Iterable[Path],
        outputs: Sequence[Path],
    ) -> None:  # fmt: skip
        """Record a finished task.

        Earlier outputs that it no longer has go, and so does what other tasks have made from
        outputs that are others now.
        """
        before = self.entries.get(task)
        names = sorted(map(self._name, outputs))
        for name in names:
            self._inputs.pop(name, None)
        made = {name: self.digest(self.folder / name) for name in names}
        digests = self._digests(inputs)
        entry = Entry(task=task, link=link, made_from=made_from, inputs=digests, outputs=made)
        with writing(f"{self.folder}: the record of {task!r}"):
            file = self.file(task)
            write_file(file, with_checksum({**asdict(entry), "checksum": ""}), alone=True)
            self.damaged.pop(file, None)
            self._add(entry)
            gone = set(before.outputs if before else ()) - made.keys()
            self._remove(gone)
        self._forget_users(made | dict.fromkeys(gone, ""))

    def forget(self, task: str, *, users: bool = True) -> None:
        """Remove the record of a task, its outputs, and, with `users`, what was made from them."""
        entry = self.entries.get(task)
        with writing(f"{self.folder}: what {task!r} made before cannot be removed"):
            self.file(task).unlink(missing_ok=True)
            if entry is None or self._entries is None:
                return
            del self._entries[task]
            self._remove(entry.outputs)
        if users:
            self._forget_users(dict.fromkeys(entry.outputs, ""))

    def found(self, path: Path) -> Path | None:
        """Return the place of a result, if it is what its record says; None where there is none.

        Raises StoreError: it is damaged, gone, not recorded, or made from other results than those
        that lie here now.
        """
        place = folder_in_place(path)
        got = self._inputs[self._name(path)] = self.digest(place)
        if damage := self.damage(path, got):
            raise StoreError(str(damage))
        return place if got else None

    def damage(self, path: Path, got: str | None = None) -> Damage | None:
        """Say what is wrong with a result; nothing where it is sound, or none was made.

        `got` is its digest, where that is known.
        """
        name, got = self._name(path), self.digest(folder_in_place(path)) if got is None else got
        entry = self.maker(name)
        if entry is None:
            names = "".join(f", and tasks/{file.name} is damaged" for file in [*self.damaged][:3])
            problem = f"no record says what it was made from{names}"
            # Stores that were made elsewhere hold digests of their own.
            sound = not got or (path / "manifest").is_dir()
            return None if sound else Damage(path, problem, self._remedy(""))
        remedy = self._remedy(entry.link)
        if got != (expected := entry.outputs[name]):
            problem = f"expected SHA-256 {expected}, got {got}" if got else "it is gone"
            problem = f"not what {entry.task!r} has made: {problem}"
            return Damage(path, problem, remedy)
        if others := [name for name, digest in entry.inputs.items() if self._input(name) != digest]:
            problem = f"made from another {others[0]} than lies there now"
            return Damage(path, problem, remedy, self.folder / others[0])
        return None

    def maker(self, name: str) -> Entry | None:
        """Return the record that has this output, given by its path in the run folder."""
        return self._of_output.get(name) if self.entries else None

    def outputs(self, start: Path | None = None) -> list[Path]:
        """List the places of all recorded outputs, or of those below a folder."""
        above = "" if start is None else f"{self._name(start)}/"
        names = (name for entry in self.entries.values() for name in entry.outputs)
        return sorted(self.folder / name for name in names if name.startswith(above))

    def digest(self, path: Path) -> str:
        """Return the digest of a result; that of a store is of its manifest, which holds others."""
        with reading(path, "a result of a run", self._remedy("")):
            if (path / "manifest").is_dir():
                return joint_digest(path, [path / "zarr.json", path / "manifest"])
            return path_digest(path)

    def _add(self, entry: Entry) -> None:
        assert self._entries is not None
        self._entries[entry.task] = entry
        self._of_output |= dict.fromkeys(entry.outputs, entry)

    def _forget_users(self, made: Mapping[str, str]) -> None:
        for entry in list(self.entries.values()):
            others = any(entry.inputs.get(name, digest) != digest for name, digest in made.items())
            # A report shows what lay there: it is made again, and stays to be looked at until then.
            if others and entry.task in self.entries and entry.link != "report":
                self.forget(entry.task)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._inputs.pop(name, None)
            self._of_output.pop(name, None)
            path = self.folder / name
            if not path.parent.resolve().is_relative_to(self.folder.resolve()):
                raise StoreError(f"{path}: leads out of the run folder; remove that link")
            # Stores look after themselves, and take hours; a link to one is no store.
            if path.is_symlink() or not (path / "manifest").is_dir():
                remove_whatever(path)

    def _digests(self, paths: Iterable[Path]) -> dict[str, str]:
        return {name: self._input(name) for name in sorted(map(self._name, paths))}

    def _input(self, name: str) -> str:
        if name not in self._inputs:
            self._inputs[name] = self.digest(folder_in_place(self.folder / name))
        return self._inputs[name]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def file(self, task: str) -> Path:
        """Return the file of the record of a task."""
        return self.folder / RECORDS / f"{file_name(task)}.json"

    def _remedy(self, link: str) -> str:
        again = f"Run {command(link, self.folder)}, or " if link else "Run "
        return f"{again}{command('verify', self.folder, '--repair')}: it is made again."
