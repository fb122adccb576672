"""Events of pools: what a slow reading of two answers in words says happened."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import polars as pl

from yieldlab import schema
from yieldlab.collect.events import ORDER, happened, last_events

AT = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = pl.DataFrame(schema=schema.POOL_EVENTS)


def feed(**pools: tuple[str | None, str | None, str | None]) -> pl.DataFrame:
    rows = [(pool_id, *told) for pool_id, told in pools.items()]
    return pl.DataFrame(rows, schema={"pool_id": pl.String, **dict.fromkeys(schema.DESCRIBED, pl.String)}, orient="row")


def next_events(
    known: pl.DataFrame, now: pl.DataFrame, *, at: datetime = AT, silent: tuple[str, ...] = (), collected: str = ""
) -> pl.DataFrame:
    ids = pl.Series(collected.split(), dtype=pl.String) if collected else now["pool_id"]
    return happened(last_events(known), now, collected=ids, silent=silent, at=at)


def told(events: pl.DataFrame) -> list[tuple[object, ...]]:
    return events.select("pool_id", "event", "before", "after").rows()


def test_a_pool_appears_vanishes_and_returns_once_each() -> None:
    both, one = feed(a=("p", "USDC", "Base"), b=("q", "X/Y", "Base")), feed(a=("p", "USDC", "Base"))
    first = next_events(NOTHING, both)
    assert told(first) == [("a", "appeared", None, "p/Base/USDC"), ("b", "appeared", None, "q/Base/X/Y")]
    assert next_events(first, both).is_empty()
    second = next_events(first, one)
    assert told(second) == [("b", "vanished", "q/Base/X/Y", None)]
    known = pl.concat([first, second])
    assert next_events(known, one).is_empty()
    assert told(next_events(known, both)) == [("b", "returned", None, "q/Base/X/Y")]


def test_a_name_and_a_symbol_change_apart() -> None:
    known = next_events(NOTHING, feed(a=("morpho-v1", "X/Y", "Base")))
    renamed = next_events(known, feed(a=("morpho-blue", "X/Y", "Base")))
    assert told(renamed) == [("a", "renamed", "morpho-v1/Base/X/Y", "morpho-blue/Base/X/Y")]
    symbol = next_events(known, feed(a=("morpho-v1", "X/Z", "Base")))
    assert told(symbol) == [("a", "symbol_changed", "morpho-v1/Base/X/Y", "morpho-v1/Base/X/Z")]
    both = next_events(known, feed(a=("new", "Z", "Base")))
    assert told(both) == [
        ("a", "renamed", "morpho-v1/Base/X/Y", "new/Base/X/Y"),
        ("a", "symbol_changed", "new/Base/X/Y", "new/Base/Z"),
    ]
    assert next_events(pl.concat([known, both]), feed(a=("new", "Z", "Base"))).is_empty()


def test_a_pool_that_returns_under_another_name_does_both() -> None:
    known = next_events(NOTHING, feed(a=("p", "X", "Base"), b=("p", "Y", "Base")))
    known = pl.concat([known, next_events(known, feed(b=("p", "Y", "Base")))])
    back = next_events(known, feed(a=("p2", "X", "Base"), b=("p", "Y", "Base")))
    assert told(back) == [("a", "returned", None, "p/Base/X"), ("a", "renamed", "p/Base/X", "p2/Base/X")]
    assert next_events(pl.concat([known, back]), feed(a=("p2", "X", "Base"), b=("p", "Y", "Base"))).is_empty()


def test_what_a_row_does_not_tell_of_a_name_is_as_it_was() -> None:
    known = next_events(NOTHING, feed(a=("p", "X/Y", "Base"), b=("p", None, "Base")))
    for silent in [(None, "X/Y", "Base"), ("p", None, "Base"), ("p", "X/Y", None), (None, None, None)]:
        assert next_events(known, feed(a=silent, b=("p", None, "Base"))).is_empty()
    assert told(next_events(known, feed(a=(None, "Z", "Base"), b=("p", None, None)))) == [
        ("a", "symbol_changed", "p/Base/X/Y", "p/Base/Z")
    ]


def test_a_slash_in_a_chain_is_not_taken_for_the_end_of_it() -> None:
    known = next_events(NOTHING, feed(a=("p", "X", "A/B")))
    assert told(known) == [("a", "appeared", None, "p/A%2FB/X")]
    assert next_events(known, feed(a=("p", "X", "A/B"))).is_empty()
    assert told(next_events(known, feed(a=("p", "Y", "A/B")))) == [("a", "symbol_changed", "p/A%2FB/X", "p/A%2FB/Y")]
    assert told(next_events(known, feed(a=("p", "X", "A/C")))) == [("a", "renamed", "p/A%2FB/X", "p/A%2FC/X")]


def test_a_refused_row_is_neither_gone_nor_back() -> None:
    known = next_events(NOTHING, feed(a=("p", "X", "Base"), b=("p", "Y", "Base")))
    only_b = feed(b=("p", "Y", "Base"))
    assert next_events(known, only_b, silent=("a",)).is_empty()
    known = pl.concat([known, next_events(known, only_b)])
    assert next_events(known, only_b, silent=("a",)).is_empty()


def test_only_collected_pools_appear_and_each_is_followed_from_then_on() -> None:
    all_three = feed(a=("p", "X", "Base"), b=("p", "Y", "Base"), c=("p", "Z", "Base"))
    known = next_events(NOTHING, all_three, collected="a")
    assert known["pool_id"].to_list() == ["a"]
    # Another selection later: what was collected once is still followed.
    assert told(next_events(known, feed(b=("p", "Y", "Base")), collected="b")) == [
        ("b", "appeared", None, "p/Base/Y"),
        ("a", "vanished", "p/Base/X", None),
    ]


def test_a_clock_set_back_does_not_hide_an_event_behind_an_older_one() -> None:
    known = next_events(NOTHING, feed(a=("p", "X", "Base"), b=("p", "Y", "Base")))
    gone = next_events(known, feed(b=("p", "Y", "Base")), at=AT - timedelta(hours=3))
    known = pl.concat([known, gone])
    assert gone["event_at"].item() > AT
    assert last_events(known).filter(pl.col("pool_id") == "a")["event"].item() == "vanished"


def test_the_events_of_a_random_feed_are_those_of_a_slow_reading() -> None:
    draw = random.Random(3)
    known, names, gone = NOTHING, {}, set()
    for step in range(60):
        now = {
            pool: (draw.choice(["p", "q"]), draw.choice(["X", "X/Y"]), draw.choice(["Base", None]))
            for pool in "abcdefgh"
            if draw.random() < 0.7
        }
        expected = []
        for pool in sorted({*now, *names}):
            if pool not in now:
                if pool not in gone:
                    gone.add(pool)
                    expected.append((pool, "vanished", names[pool], None))
                continue
            protocol, symbol, chain = now[pool]
            # What is not told is as it was.
            chain = chain or (names[pool].split("/")[1] if pool in names else "")
            name = f"{protocol}/{chain}/{symbol}"
            if pool not in names:
                expected.append((pool, "appeared", None, name))
            else:
                if pool in gone:
                    gone.discard(pool)
                    expected.append((pool, "returned", None, names[pool]))
                old_protocol, old_chain, old_symbol = names[pool].split("/", 2)
                between = f"{protocol}/{chain}/{old_symbol}"
                if (old_protocol, old_chain) != (protocol, chain):
                    expected.append((pool, "renamed", names[pool], between))
                if old_symbol != symbol:
                    expected.append((pool, "symbol_changed", between, name))
            names[pool] = name
        events = next_events(known, feed(**now), at=AT + timedelta(hours=step))
        found = events.with_columns(pl.col("event").replace_strict(ORDER).alias("order")).sort("pool_id", "order")
        assert told(found) == expected
        known = pl.concat([known, events])
    assert set(known["event"]) == set(ORDER)
