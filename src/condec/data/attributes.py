"""What a table says of samples besides their label: one column a property, by their ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from condec.basis.checks import nearest
from condec.basis.errors import DataError
from condec.basis.files import reading, user_path
from condec.data.inputs import listed

if TYPE_CHECKING:
    import pandas

_IDS: Final = ("id", "file")


def read_attributes(
    path: str | Path, ids: Sequence[str], column: str | None = None
) -> "pandas.DataFrame":
    """Read a table of samples, a row for each of `ids`, in their order.

    Parameters
    ----------
    path : path
        A csv, or a table in parquet, with the column ``id`` or ``file`` (of both, the first is
        taken); without one, with as many rows as there are samples, in their order.
    ids : sequence of str
        Of samples (`Inputs.ids`, `Store.sample_ids`).
    column : str, optional
        One that has to be there.

    Returns
    -------
    pandas.DataFrame
        Texts as they are, numbers as float64, NaN or None where nothing is said: in a column of
        numbers of a csv also by words such as NA and null, which are texts in others. Columns of
        ids are not among its own.

    Raises
    ------
    DataError
        The file cannot be read, an id comes twice or is missing, other rows than samples, or no
        such column.
    """
    import pandas

    file = user_path(path)
    remedy = "Expected a csv or parquet with a row a sample, and their ids in a column id or file."
    with reading(file, "a table of attributes", remedy, DataError):
        parquet = file.suffix == ".parquet"
        if parquet:
            table: Any = pandas.read_parquet(file)
        else:
            table = pandas.read_csv(file)
            texts = pandas.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])
            for name, values in table.items():  # 007 is no number, None and NA may be names
                number = pandas.api.types.is_numeric_dtype(values) and values.notna().any()
                if str(name).strip() in _IDS or not number:
                    table[name] = texts[name]
    table.columns = [str(name).strip() for name in table.columns]
    key = next((name for name in _IDS if name in table), None)
    if key is not None:
        names = [str(name).strip() for name in table[key]]
        table = table.drop(columns=list(_IDS), errors="ignore").set_axis(names)
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise DataError(f"{file}: {twice!r} comes twice; give every sample one row")
        if missing := [name for name in ids if name not in table.index]:
            raise DataError(
                f"{file}: {len(missing)} of {len(ids)} samples have no row: {listed(missing, 5)}"
            )
        table = table.loc[list(ids)]
    elif len(table) != len(ids):
        raise DataError(
            f"{file}: {len(table)} rows for {len(ids)} samples, and no column id or file to tell "
            "whose they are; give one"
        )
    if column is not None and column not in table:
        near = nearest(column, table.columns)
        raise DataError(
            f"{file}: no column {column!r}" + (f"; nearest: {near[0]!r}" if near else "")
        )
    return table.reset_index(drop=True)  # type: ignore[no-any-return]
