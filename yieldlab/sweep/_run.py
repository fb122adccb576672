"""A sweep as a run: chunks computed one after another, each on disk before the next begins, then one table of all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

import polars as pl
from polars.io.plugins import register_io_source

from yieldlab.errors import DataError, UsageError
from yieldlab.metrics import MEASURES
from yieldlab.panel import Panel
from yieldlab.runs import EQUITY, FAILURES, SUCCESS, TRADES, TRIALS, RunFolder, describe, free_folder, refuse_changes
from yieldlab.strategy import Strategy
from yieldlab.sweep._bench import CHUNK_POINTS, CHUNK_TRIALS, Bench, Estimate
from yieldlab.sweep._plan import Plan, Point, from_config
from yieldlab.sweep._rank import RANKED_BY, better, rank

PLAN = "plan.parquet"

#: Finished signals that are all made again before a run goes on; of more, one of each chunk.
RECALLED = 256

#: How many of the best trials leave their equity and trades, and among how many those are sought: trials that differ in
#: a parameter that had no effect count as one.
BEST = 10
LOOKED_AT = 1_000


class Stop(Protocol):
    """Something that can ask a sweep to end after the chunk in work."""

    @property
    def requested(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """The run folder is there; `done` trials of an earlier sitting are in it."""

    run_id: str
    path: Path
    trials: int
    signals: int
    markets: int
    chunks: int
    done: int


@dataclass(frozen=True, slots=True)
class ChunkDone:
    """`done` of `total` trials are on disk; `failed` counts this sitting's. `best` is the best value of `by` so far."""

    done: int
    total: int
    failed: int
    trials_per_second: float
    by: str
    best: float | None
    best_trial: str | None


@dataclass(frozen=True, slots=True)
class TrialsFailed:
    """`count` trials of the last chunk failed, the first for this reason."""

    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The sweep was asked to stop; `resume` goes on from here."""

    run_id: str
    path: Path
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All trials are on disk, in one table."""

    result: SweepResult


Event = Planned | ChunkDone | TrialsFailed | Interrupted | Finished


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep left in its run folder, read when it is asked for."""

    path: Path

    @classmethod
    def open(cls, folder: RunFolder) -> SweepResult:
        """The result in a run folder. Raises UsageError when the run is no sweep."""
        if folder.manifest.kind != "sweep":
            raise UsageError(f"run {folder.id} is a {folder.manifest.kind}, not a sweep")
        return cls(folder.path)

    @property
    def folder(self) -> RunFolder:
        """Where it lies."""
        return RunFolder(self.path)

    @property
    def trials(self) -> pl.DataFrame:
        """One row per trial: trial_id, its parameters, its measures, and the reason if it failed."""
        return self.scan().collect()

    @property
    def equity(self) -> pl.DataFrame:
        """The best trials over time, best first: trial_id, time, equity_usd."""
        return self.folder.scan(EQUITY).collect()

    @property
    def trades(self) -> pl.DataFrame:
        """The best trials' trades, best first: trial_id, time, pool_id, amount_usd, cost_usd, gas_usd,
        written_off_usd."""
        return self.folder.scan(TRADES).collect()

    @property
    def failures(self) -> pl.DataFrame:
        """trial_id and reason of every trial that failed."""
        return self.scan().filter(pl.col("reason").is_not_null()).select("trial_id", "reason").collect()

    def scan(self) -> pl.LazyFrame:
        """The trials, lazily; of a run that is not complete, those that are done. Raises DataError when none is."""
        folder = self.folder
        if folder.status in ("complete", "partial"):
            return folder.scan(TRIALS)
        chunks = folder.chunks()
        if not chunks:
            raise DataError(f"run {folder.id} is {folder.status} and has no finished trial yet")
        return pl.scan_parquet([chunks[number] for number in sorted(chunks)], glob=False)

    def best(self, by: str = RANKED_BY, limit: int = BEST) -> pl.DataFrame:
        """The first `limit` rows of `rank`."""
        return rank(self.scan(), by, limit=limit)


def estimate(plan: Plan, panel: Panel, *, threads: int | None = None, max_memory: int | None = None) -> Estimate:
    """What the sweep would take; nothing is written. Raises what `run` would raise before it writes."""
    return Bench(plan, panel, threads=threads).estimate(max_memory=max_memory)


def run(
    plan: Plan,
    panel: Panel,
    *,
    root: Path = Path("data/runs"),
    out: Path | None = None,
    by: str = RANKED_BY,
    argv: Sequence[str] = (),
    cutoff: datetime | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    chunk_trials: int = CHUNK_TRIALS,
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Run the sweep into a new run folder, telling how far it is; the last event is Finished or Interrupted.

    What can be refused is refused before anything is written: an `out` that is not free, fields or days that the panel
    lacks, a strategy that gives no signal at all, too little memory. Closing the generator leaves an interrupted run.
    """
    if out is not None:
        free_folder(out)
    rank(pl.DataFrame(schema={"trial_id": pl.String, by: pl.Float64}), by)
    bench = Bench(plan, panel, threads=threads)
    size = min(chunk_trials, bench.chunk_trials(max_memory))
    bench.first_signal()
    manifest = describe(
        "sweep",
        [plan.strategy],
        panel,
        {**plan.config, "by": by, "chunk_trials": size},
        trials=len(plan),
        seed=plan.seed if plan.sample is not None else None,
        cutoff=cutoff,
        argv=argv,
        markets=plan.markets,
    )
    folder = RunFolder.create(root, manifest, out=out)
    yield from _work(folder, bench, stop)


def resume(
    folder: RunFolder,
    strategy: Strategy,
    panel: Panel,
    *,
    settings: Mapping[str, object] | None = None,
    threads: int | None = None,
    stop: Stop | None = None,
) -> Iterator[Event]:
    """Compute what the run lacks; its files end the same, byte for byte, as if it had never been interrupted.

    `settings` are values of the configuration in force now, by their name in the manifest's `config`. Raises, saying
    what changed, unless strategy, configuration, versions, panel and the signals of finished chunks are those of the
    run.
    """
    recorded = folder.manifest
    if recorded.kind != "sweep":
        raise UsageError(f"run {folder.id} is a {recorded.kind}; only a sweep can be resumed")
    config = {**recorded.config, **(settings or {})}
    refuse_changes(recorded, describe("sweep", [strategy], panel, config, trials=recorded.trials))
    yield from _work(folder, Bench(from_config(strategy, recorded.config), panel, threads=threads), stop)


def _work(folder: RunFolder, bench: Bench, stop: Stop | None) -> Iterator[Event]:
    with folder.lock():
        _recall(folder, bench)
        clock = _Clock(folder.manifest.seconds)
        folder.update(status="running", reason=None, finished=None)
        (folder.path / SUCCESS).unlink(missing_ok=True)
        try:
            yield from _chunks(folder, bench, stop, clock)
        except (GeneratorExit, KeyboardInterrupt):
            folder.update(status="interrupted", seconds=clock.seconds)
            raise
        except BaseException as error:
            with suppress(OSError):  # a full disk has no room for its own obituary
                folder.update(status="failed", seconds=clock.seconds, reason=f"{type(error).__name__}: {error}")
            raise


def _recall(folder: RunFolder, bench: Bench) -> None:
    """Hold the signals to those that finished chunks rest on: a strategy may read more than the panel.

    Raises DataError when one has changed. All are made again, or, of very many, one of each chunk; a signal that is
    made again later, for trials that are missing or for the best ones, is held to the same.
    """
    bounds = bench.plan.bounds(int(str(folder.manifest.config["chunk_trials"])), CHUNK_POINTS)
    first: dict[int, Point] = {}
    chosen: set[int] = set()
    for number, path in sorted(folder.chunks().items()):
        inside = number + 1 < bounds.size
        points = list(bench.plan.points(int(bounds[number]), int(bounds[number + 1]))) if inside else []
        digests = folder.chunk_signals(path)
        if len(points) != len(digests):
            raise DataError(f"{path} does not say what its trials rest on; run the sweep anew")
        for point, digest in zip(points, digests, strict=True):
            bench.know(point, digest)
            first.setdefault(bench.plan.number(point.begin), point)
        chosen.add(bench.plan.number(points[-1].begin))
    for signal, point in first.items():
        if len(first) <= RECALLED or signal in chosen:
            bench.ranking(point)


def _chunks(folder: RunFolder, bench: Bench, stop: Stop | None, clock: _Clock) -> Iterator[Event]:
    plan, config = bench.plan, folder.manifest.config
    by = str(config["by"])
    bounds = plan.bounds(int(str(config["chunk_trials"])), CHUNK_POINTS)
    total, chunks = len(plan), bounds.size - 1
    folder.write("strategy.py", plan.strategy.source.encode())
    folder.write_frame(PLAN, _lazily(plan))
    finished = folder.chunks()
    missing = [number for number in range(chunks) if number not in finished]
    done = total - sum(int(bounds[number + 1] - bounds[number]) for number in missing)
    signals, markets = plan.distinct()
    leader = _Leader(by)
    for path in finished.values():
        leader.see(pl.read_parquet(path, columns=["trial_id", by]))
    yield Planned(folder.id, folder.path, total, signals, markets, chunks, done)
    failed, before, clock_start = 0, done, clock.seconds
    for number in missing:
        if stop is not None and stop.requested:
            folder.update(status="interrupted", seconds=clock.seconds)
            yield Interrupted(folder.id, folder.path, done, total)
            return
        begin, end = int(bounds[number]), int(bounds[number + 1])
        rows, digests = bench.results(begin, end)
        folder.write_chunk(number, rows, digests)
        done += end - begin
        leader.see(rows)
        broken = rows["reason"].drop_nulls()
        failed += broken.len()
        if broken.len():
            yield TrialsFailed(broken.len(), broken[0])
        rate = (done - before) / max(clock.seconds - clock_start, 1e-9)
        yield ChunkDone(done, total, failed, rate, by, leader.value, leader.trial)
    _assemble(folder, bench, chunks, by, clock)
    yield Finished(SweepResult(folder.path))


def _assemble(folder: RunFolder, bench: Bench, chunks: int, by: str, clock: _Clock) -> None:
    """One table of all chunks, and what else a complete run has; the same bytes whenever it is done."""
    finished = folder.chunks()
    for number in range(chunks):
        if number not in finished:
            raise DataError(f"run {folder.id} lost chunk {number + 1} of {chunks}; `yieldlab sweep resume` computes it")
    folder.write_frame(TRIALS, pl.scan_parquet([finished[number] for number in range(chunks)], glob=False))
    trials = folder.scan(TRIALS)
    failures = trials.filter(pl.col("reason").is_not_null()).select("trial_id", "reason")
    failed = int(failures.select(pl.len()).collect().item())
    if failed:
        folder.write_frame(FAILURES, failures)
    ran = trials.select("trial_id", *MEASURES, "reason").with_row_index("position").filter(pl.col("reason").is_null())
    best = rank(ran, by, limit=LOOKED_AT).unique(MEASURES, keep="first", maintain_order=True).head(BEST)
    if best.height:
        equity, trades = bench.paths(best["position"].to_list())
        folder.write_frame(EQUITY, equity)
        folder.write_frame(TRADES, trades)
    folder.finish("partial" if failed else "complete", failed=failed, seconds=clock.seconds)


def _lazily(plan: Plan) -> pl.LazyFrame:
    """The plan's table, made a slice at a time as it is written."""

    def slices(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for begin in range(0, len(plan), CHUNK_TRIALS):
            yield plan.frame(begin, min(begin + CHUNK_TRIALS, len(plan)))

    return register_io_source(slices, schema=plan.frame(0, 1).schema)


class _Leader:
    """The best trial seen so far."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.value: float | None = None
        self.trial: str | None = None

    def see(self, trials: pl.DataFrame) -> None:
        first = rank(trials.select("trial_id", self.by), self.by, limit=1)
        if first.height and better(self.by, first[self.by][0], self.value):
            self.value, self.trial = first[self.by][0], first["trial_id"][0]


class _Clock:
    """Seconds of work, over all sittings."""

    def __init__(self, before: float) -> None:
        self._origin = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        return round(time.perf_counter() - self._origin, 3)
