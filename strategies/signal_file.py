"""Follow a signal made elsewhere: a Parquet file of pool_id, time and value.

This is how any outside model plugs in. A row says what its pool is worth holding (higher is better) as decided at the
end of the UTC day of `time`, with what was known by then; the simulator acts on it at the end of that day. `time` is a
date or an instant (UTC when it has no time zone), at most one row per pool and day. A null or NaN value, and a day
without a row, mean "no view": nothing is carried forward from the day before. Days outside the panel are not used.

The audit can prove that this strategy reads only rows up to a day, not how the file was made: a value fitted on later
days looks like any other. Give the file values that were truly known on their day.
"""

from datetime import UTC
from pathlib import Path

import numpy as np
import polars as pl

from yieldlab import Grid, Panel
from yieldlab.errors import DataError, did_you_mean

NEEDS = ()
SIGNAL = Grid(path=["signal.parquet"])
POLICY = Grid(top_n=[3, 1, 5, 10], every=[7, 1, 30], weighting=["equal", "score"], min_turnover=[0.0, 0.05])

COLUMNS = ("pool_id", "time", "value")


def signal(panel: Panel, path: str) -> np.ndarray:
    rows = checked(read(Path(path).expanduser()), path)
    column = {pool: i for i, pool in enumerate(panel.pool_ids)}
    unknown = [pool for pool in rows["pool_id"].unique().sort().to_list() if pool not in column]
    if unknown:
        raise DataError(
            f"{path} names pools that the panel does not have, {len(unknown)} in all, the first {unknown[0]!r}"
            f"{did_you_mean(unknown[0], column) if len(column) < 50 else ''}"
        )
    days = panel.times.astype("datetime64[D]").astype(np.int64)
    day = rows["day"].to_numpy()
    t = np.searchsorted(days, day)
    inside = (t < days.size) & (days[np.minimum(t, days.size - 1)] == day)
    i = np.array([column[pool] for pool in rows["pool_id"].to_list()], dtype=np.int64)
    views = np.full(panel.shape, np.nan)
    views[t[inside], i[inside]] = rows["value"].to_numpy()[inside]
    return views


def read(file: Path) -> pl.DataFrame:
    """The three columns of the file, whatever else it holds."""
    if not file.is_file():
        raise DataError(f"there is no signal file {file}; give one with --set path=FILE.parquet")
    try:
        stored = pl.scan_parquet(file, glob=False)
        names = stored.collect_schema().names()
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            hint = did_you_mean(missing[0], names)
            raise DataError(f"{file} has no column {missing[0]!r}{hint}; a signal file has {', '.join(COLUMNS)}")
        return stored.select(COLUMNS).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def checked(frame: pl.DataFrame, path: str) -> pl.DataFrame:
    """pool_id, day (since 1970) and value, one row per pool and day; or what is wrong with them."""
    kind = frame.schema["time"]
    if not isinstance(kind, (pl.Date, pl.Datetime)):
        raise DataError(f"{path}: column 'time' must hold dates or instants, not {kind}")
    if not frame.schema["value"].is_numeric():
        raise DataError(f"{path}: column 'value' must hold numbers, not {frame.schema['value']}")
    if frame.schema["pool_id"] not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{path}: column 'pool_id' must hold words, not {frame.schema['pool_id']}")
    if isinstance(kind, pl.Datetime) and kind.time_zone not in (None, str(UTC)):
        frame = frame.with_columns(pl.col("time").dt.convert_time_zone("UTC"))
    rows = frame.select(
        pl.col("pool_id").cast(pl.String),
        pl.col("time").dt.date().cast(pl.Int32).cast(pl.Int64).alias("day"),
        pl.col("value").cast(pl.Float64).fill_null(np.nan),
    )
    incomplete = rows.filter(pl.col("pool_id").is_null() | pl.col("day").is_null()).height
    if incomplete:
        raise DataError(f"{path}: rows without a pool_id or a time, {incomplete} in all")
    infinite = rows.filter(pl.col("value").is_infinite())
    if infinite.height:
        raise DataError(
            f"{path}: infinite values, {infinite.height} in all, the first of pool {infinite['pool_id'][0]!r}"
        )
    repeated = rows.filter(pl.struct("pool_id", "day").is_duplicated()).sort("pool_id", "day")
    if repeated.height:
        pool, day = repeated["pool_id"][0], np.datetime64(repeated["day"][0], "D")
        raise DataError(f"{path}: {repeated.height} rows share their pool and day, the first {pool!r} on {day}")
    return rows
