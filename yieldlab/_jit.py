"""How kernels are compiled: the one place that spells Numba's options.

`error_model="numpy"` gives IEEE division without a branch per operation; no fastmath, since it removes the NaN checks
that "not observed" rests on. Compiled code is kept on disk beside the modules (or in `NUMBA_CACHE_DIR`).
With `NUMBA_DISABLE_JIT=1` everything runs as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

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


@inlined_kernel
def keep(*arrays: object) -> None:
    """Does nothing; owners of `borrowed` memory are not freed before the line on which they are kept."""


if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]

    def borrowed(array: A) -> A:
        """Uncompiled, nothing counts references at a call: the array itself."""
        return array

else:
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array, populate_array

    @intrinsic
    def borrowed(typing_context: Any, array: Any) -> Any:
        """The same memory without a reference count, for an array whose owner outlives every use of it.

        Compiled code counts references at each call that takes an array, with an atomic instruction that all threads
        wait for. In a walk of many small steps that is most of the time. An owner made in the same function is freed
        after its last use there: `keep` it behind the last use of what was borrowed.
        """

        def view(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            owner = make_array(array)(context, builder, arguments[0])
            bare = make_array(array)(context, builder)
            layout = {name: getattr(owner, name) for name in ("data", "shape", "strides", "itemsize")}
            populate_array(bare, **layout, meminfo=None)
            return bare._getvalue()

        return array(array), view
