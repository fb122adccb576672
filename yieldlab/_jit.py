"""How kernels are compiled: the one place that spells Numba's options.

`error_model="numpy"` gives IEEE division without a branch per operation; no fastmath, since it removes the NaN checks
that "not observed" rests on. Compiled code is kept on disk beside the modules (or in `NUMBA_CACHE_DIR`).
With `NUMBA_DISABLE_JIT=1` everything runs as plain Python.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

prange = numba.prange

_ONE_AT_A_TIME = threading.RLock()


def _sources() -> str:
    """A digest of everything that ends up in compiled code: the kernels, what they take constants from, this file."""
    package = Path(__file__).parent
    hasher = hashlib.sha256()
    for path in sorted([*package.rglob("*_kernels.py"), package / "units.py", Path(__file__)]):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


_SOURCES = _sources()


def _compile(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Compile, and keep the result for as long as no kernel changes.

    Numba takes stored code for fresh while the file of its own function is, but a kernel also contains code of those
    that it calls: so every kernel is stamped with the sources of all.
    """
    compiled: Callable[P, R] = numba.njit(cache=True, error_model="numpy", nogil=True, **options)(function)
    if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        stored = compiled._cache._cache_file  # type: ignore[attr-defined]
        stored._source_stamp = (stored._source_stamp, _SOURCES)
    return compiled


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile one serial step; callable from other kernels and from Python."""
    return _compile(function)


def parallel_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function whose body is one `prange` over independent trials."""
    return _compile(function, parallel=True)


def inlined_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a small helper that the optimizer should always merge into its caller."""
    return _compile(function, forceinline=True)


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Parallel kernels run on `count` threads in here, or as many as there are; gives the number in force.

    One caller at a time: kernels use all their threads inside, and not every threading layer of Numba bears two. After
    a kernel has run, new processes must be spawned, not forked.
    """
    with _ONE_AT_A_TIME:
        before = numba.get_num_threads()
        in_force = min(count or thread_limit(), thread_limit())
        numba.set_num_threads(in_force)
        try:
            yield in_force
        finally:
            numba.set_num_threads(before)


def thread_limit() -> int:
    """The most threads that `threads` can give."""
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
