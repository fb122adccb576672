"""How the honesty of data looks: what was looked for and found, who survived, what was changed after the fact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rich.console import RenderableType

from yieldlab.report.data import cell, day, synthetic_note
from yieldlab.report.terminal import count, note, number, percent, table

if TYPE_CHECKING:
    import polars as pl

    from yieldlab.quality import Report, Revisions


#: Outages and crowds that are told one by one.
_NAMED = 3


class _Line(NamedTuple):
    """One line of what was looked for: in words, the column that counts it, the column its limit holds for."""

    threshold: str
    label: str
    counted: str
    worst: str


_LINES = (
    _Line("max_gap_days", "gaps between rows", "gaps", "longest_gap_days"),
    _Line("max_missing_share", "days without a row", "missing_days", "missing_share"),
    _Line("max_stale_days", "repeated yields", "repeated_days", "longest_stale_days"),
    _Line("max_spike_share", "spikes", "spikes", "spike_share"),
    _Line("max_split_share", "APY is not base + reward", "split_rows", "split_share"),
    _Line("max_no_tvl_share", "TVL missing or zero", "no_tvl_rows", "no_tvl_share"),
    _Line("max_low_tvl_share", "TVL below the floor", "low_tvl_rows", "low_tvl_share"),
    _Line("max_duplicate_share", "several rows on a day", "duplicate_rows", "duplicate_share"),
    _Line("max_level_shifts", "shifts of level", "level_shifts", "level_shifts"),
    _Line("max_revised_share", "changed after the fact", "revised_rows", "revised_share"),
    _Line("max_late_start_days", "late starts", "late_start_days", "late_start_days"),
)


def check_lines(report: Report, assets: pl.DataFrame, synthetic: int, limit: int) -> Iterator[RenderableType]:
    """What was looked for, who survived, the worst `limit` pools (0: all) with what lies above, and the sum."""
    yield _checks(report)
    yield _years(report)
    shown = _worst(report, limit)
    yield _pools(shown, assets)
    breaches = report.breaches
    told = breaches.filter(breaches["pool_id"].is_null() | breaches["pool_id"].is_in(shown["pool_id"].implode()))
    if told.height:
        order = {pool: place for place, pool in enumerate([None, *shown["pool_id"]])}
        sentences = sorted(told.select("pool_id", "message").rows(), key=lambda row: order[row[0]])
        some = "" if told.height == breaches.height else f", {told.height:,} of {breaches.height:,}"
        yield "\n".join(
            [f"Above a threshold{some}:", *(sentence for _, sentence in sentences)]
        )  # whole lines, for a search
    yield from _silences(report)
    if shown.height < report.pools.height:
        yield f"{shown.height:,} of {report.pools.height:,} pools are shown, worst first; --limit 0 shows all"
    if synthetic < report.pools.height and _only_survivors(report):
        yield note(
            "Every pool of earlier years is still alive at the end: pools that died were never collected, and what is "
            "earned on those that lived flatters a strategy."
        )
    yield _sum(report, synthetic)


def _silences(report: Report) -> Iterator[str]:
    """When nobody was observed, and who fell silent together: what may have been no death of pools."""
    if report.outages.height:
        spans = report.outages.sort("days", "first", descending=[True, False]).head(_NAMED)
        named = ", ".join(f"{first} to {last} ({count(days, 'day')})" for first, last, days in spans.rows())
        rest = report.outages.height - spans.height
        more = f" and {count(rest, 'other time')}" if rest else ""
        yield f"No pool at all was observed on {count(int(report.totals['outage_days']), 'day')}: {named}{more}"
    if report.crowds.height:
        most = report.crowds.sort("pools", "day", descending=[True, False]).head(_NAMED)
        named = ", ".join(f"{pools:,} of {alive:,} on {day}" for day, pools, alive in most.rows())
        rest = report.crowds.height - most.height
        more = f" and on {count(rest, 'other day')}" if rest else ""
        yield f"Many pools fell silent for good on one day, as when a source ends: {named}{more}"


def _checks(report: Report) -> RenderableType:
    rows = []
    for line in _LINES:
        limit = getattr(report.thresholds, line.threshold)
        counted = report.pools[line.counted]
        touched = int((counted > 0).sum())
        worst = report.pools[line.worst].max()
        # The days before a pool's start are no rows that look wrong: only the pools are counted.
        found = touched if line.threshold == "max_late_start_days" else int(counted.sum())
        above = report.breaches.filter(report.breaches["check"] == line.threshold).height
        rows.append(
            [
                line.label,
                f"{found:,}",
                f"{touched:,}",
                _measure(line.threshold, worst if isinstance(worst, int | float) else None),
                "none" if limit is None else _measure(line.threshold, limit),
                f"{above:,}" if limit is not None else "-",
                line.threshold,
            ]
        )
    limit = report.thresholds.max_outage_days
    rows.append(
        [
            "days without any pool",
            f"{report.totals['outage_days']:,}",
            "-",
            _measure("max_outage_days", float(report.totals["longest_outage_days"])),
            "none" if limit is None else _measure("max_outage_days", limit),
            f"{report.breaches.filter(report.breaches['check'] == 'max_outage_days').height:,}"
            if limit is not None
            else "-",
            "max_outage_days",
        ]
    )
    return table(["looked for", "found", "in pools", "worst pool", "limit", "above it", "threshold"], rows)


def _measure(threshold: str, value: float | None) -> str:
    if value is None:
        return "-"
    if threshold.endswith("_share"):
        return percent(value, 1)
    return f"{value:,.0f} d" if threshold.endswith("_days") else f"{value:,.0f}"


def _years(report: Report) -> RenderableType:
    rows = [
        [
            str(row["year"]),
            *(f"{row[name]:,}" for name in ("pools", "appeared", "left", "survivors")),
            percent(row["survivor_share"], 0),
            percent(row["share_of_today"], 0),
        ]
        for row in report.years.iter_rows(named=True)
    ]
    return table(["year", "pools", "appeared", "died", "alive at the end", "of its pools", "of the end's pools"], rows)


def _worst(report: Report, limit: int) -> pl.DataFrame:
    """The pools with the most limits exceeded, then the most rows flagged."""
    import polars as pl

    above = report.breaches.group_by("pool_id").agg(pl.len().alias("above"))
    flagged = report.flags.group_by("pool_id").agg(pl.len().alias("flagged"))
    pools = (
        report.pools.join(above, on="pool_id", how="left")
        .join(flagged, on="pool_id", how="left")
        .with_columns(pl.col("above", "flagged").fill_null(0))
        .sort("above", "flagged", "pool_id", descending=[True, True, False])
    )
    return pools.head(limit) if limit > 0 else pools


def _pools(pools: pl.DataFrame, assets: pl.DataFrame) -> RenderableType:
    named = {
        pool: " ".join(part for part in described if part)
        for pool, *described in assets.select("pool_id", "protocol", "symbol", "chain").rows()
    }
    rows = [
        [
            row["pool_id"],
            named.get(row["pool_id"], ""),
            str(row["first"]),
            str(row["last"]),
            f"{row['rows']:,}",
            f"{row['longest_gap_days']:,} d",
            percent(row["missing_share"], 1),
            f"{row['longest_stale_days'] or 0:,} d",
            *(
                f"{row[name]:,}"
                for name in (
                    "spikes",
                    "split_rows",
                    "no_tvl_rows",
                    "low_tvl_rows",
                    "duplicate_rows",
                    "level_shifts",
                    "revised_rows",
                )
            ),
            "dead" if row["dead"] else "",
        ]
        for row in pools.iter_rows(named=True)
    ]
    names = [
        "pool",
        "what it is",
        "first",
        "last",
        "rows",
        "gap",
        "missing",
        "stale",
        "spikes",
        "parts",
        "no TVL",
        "low TVL",
    ]
    names += ["dup.", "shifts", "revised", ""]
    empty = {at for at in range(8, 15) if all(row[at] == "0" for row in rows)}  # what no pool has takes no room
    kept = [at for at in range(len(names)) if at not in empty]
    return table([names[at] for at in kept], [[row[at] for at in kept] for row in rows], left=2)


def _only_survivors(report: Report) -> bool:
    """Whether every pool of every year but the last is alive at the end."""
    earlier = report.years[:-1]
    return earlier.height > 0 and bool((earlier["survivor_share"] == 1.0).all())


def _sum(report: Report, synthetic: int) -> str:
    totals = report.totals
    parts = [
        count(int(totals["pools"]), "pool"),
        f"{totals['rows']:,} rows",
        count(int(totals["flags"]), "flag"),
        f"{totals['dead_pools']:,} dead",
    ]
    pools = report.breaches["pool_id"].drop_nulls().n_unique()
    breached = f"{report.breaches.height:,} above a threshold" + (f" in {count(pools, 'pool')}" if pools else "")
    verdict = "all within the thresholds" if report.sound else breached
    label = f"; {synthetic_note(synthetic, int(totals['pools']))}" if synthetic else ""
    return f"{', '.join(parts)}; {verdict}{label}"


def revision_lines(found: Revisions, shown: pl.DataFrame, since: str | None = None) -> Iterator[RenderableType]:
    """What kinds of values were changed (`since` when, if that was asked), and the latest changes one by one."""
    totals = found.totals()
    if not found.changes.height:
        if since is None:
            yield f"No value was changed after the fact in {totals['rows']:,} rows"
        else:
            told = f"{found.earlier:,} before" if found.earlier else "none before either"
            yield f"No value was changed after the fact since {since} in {totals['rows']:,} rows ({told})"
        return
    yield table(
        ["value", "changed", "added", "withdrawn", "median change", "largest change"],
        [
            [
                row["column"],
                *(f"{row[name]:,}" for name in ("changed_values", "added", "withdrawn")),
                _value(row["column"], row["median_change"]),
                _value(row["column"], row["largest_change"]),
            ]
            for row in found.columns.iter_rows(named=True)
        ],
    )
    yield table(
        ["known since", "pools", "rows", "values", "first day changed", "last day changed"],
        [
            [
                row["month"],
                *(f"{row[name]:,}" for name in ("pools", "revised_rows", "changed_values")),
                day(row["first_valid_at"]),
                day(row["last_valid_at"]),
            ]
            for row in found.months.iter_rows(named=True)
        ],
    )
    yield table(
        ["pool", "value", "of", "known since", "days after", "before", "after", "change"],
        [
            [
                row["pool_id"],
                row["column"],
                cell(row["valid_at"])[:19],
                cell(row["observed_at"])[:19],
                number(row["days_after"], 1),
                *(_value(row["column"], row[name]) for name in ("before", "after", "change")),
            ]
            for row in shown.iter_rows(named=True)
        ],
        left=2,
    )
    yield (
        f"{totals['revised_rows']:,} of {totals['rows']:,} rows were changed after the fact, "
        f"{count(totals['changed_values'], 'value')} in {count(totals['revised_pools'], 'pool')}; "
        f"{totals['confirmed_rows']:,} came in again as they were"
    )


def _value(column: str, value: float | None) -> str:
    """Whole USD; four digits of what is small."""
    return number(value, 0 if column.endswith("_usd") else 4)
