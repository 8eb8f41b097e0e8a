"""The errors condec raises: one root, six children.

Every message names the object, what was expected, what came, and what to do next.
Each child also inherits the built-in exception a user would catch.
"""

import shlex


def printable(text: str) -> str:
    r"""Return a text as a terminal may show it: control characters are escaped, but line ends.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    kept = (c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    return text if text.isprintable() else "".join(kept)


def command(*words: object) -> str:
    """Write a command as it can be pasted, in quotes.

    >>> command("fit", "runs/digits")
    "'condec fit runs/digits'"
    """
    return f"'condec {shlex.join(map(str, words))}'"


def counted(number: int, noun: str) -> str:
    """Write a number of things.

    >>> counted(1, "site"), counted(1280, "shard")
    ('1 site', '1,280 shards')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


class CondecError(Exception):
    """Root of every error that condec raises on purpose."""

    def __str__(self) -> str:
        # Names of files, labels and ids stand in messages, and may come from anybody.
        return printable(super().__str__())


class OptionError(CondecError, ValueError):
    """An option object, a pattern or a configuration file holds a value that cannot be used."""


class SiteError(CondecError, LookupError):
    """A site does not exist in the model, is ambiguous, or does not influence the target."""


class ModelError(CondecError, RuntimeError):
    """The model cannot be analysed as it is: train mode, wrong output, failing forward pass."""


class DataError(CondecError, ValueError):
    """Inputs or labels cannot be used: wrong shape, not finite, missing, unreadable."""

    samples: tuple[int, ...] = ()
    """Places in the batch of the samples that it is about; empty where it is not about some."""


class StoreError(CondecError, OSError):
    """A store on disk is missing, damaged, of another recipe, or cannot be written."""


class DependencyError(CondecError, ImportError):
    """An optional dependency is needed and not installed."""
