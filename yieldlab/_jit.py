"""How kernels are compiled: the one place that spells Numba's options.

`error_model="numpy"` gives IEEE division without a branch per operation; no fastmath, since it removes the NaN checks
that "not observed" rests on. Compiled code is kept on disk beside the modules (or in `NUMBA_CACHE_DIR`).
With `NUMBA_DISABLE_JIT=1` everything runs as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")

prange = numba.prange


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile one serial step; callable from other kernels and from Python."""
    compiled: Callable[P, R] = numba.njit(cache=True, error_model="numpy", nogil=True)(function)
    return compiled


def parallel_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function whose body is one `prange` over independent trials."""
    compiled: Callable[P, R] = numba.njit(cache=True, error_model="numpy", nogil=True, parallel=True)(function)
    return compiled


def inlined_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a small helper that the optimizer should always merge into its caller."""
    compiled: Callable[P, R] = numba.njit(cache=True, error_model="numpy", nogil=True, forceinline=True)(function)
    return compiled


def use_threads(count: int) -> int:
    """Run parallel kernels on `count` threads (bounded by what was started); returns the number in force."""
    threads = max(1, min(count, thread_limit()))
    numba.set_num_threads(threads)
    return threads


def thread_limit() -> int:
    """The most threads that `use_threads` can give."""
    return int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]  # set when numba starts
