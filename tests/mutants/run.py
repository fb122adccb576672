"""Show that the simulation tests notice every fault of mutants.py: `python tests/mutants/run.py [words of a fault]`.

A copy of the package and its tests is made; its tests must pass three times as it is, and fail with each fault in it.
Kernels run uncompiled, which takes the same tests a few seconds. Exit code 1 when a fault goes unnoticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/simulate/test_against_oracle.py", "tests/simulate/test_laws.py", "tests/simulate/test_edges.py")
BASELINES = 3


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if " ".join(words) in mutant.fault]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("yieldlab", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for number in range(BASELINES):
            if not passes(copy):
                print(f"baseline {number + 1} of {BASELINES} fails: nothing can be said about faults")
                return 1
        print(f"baseline passes {BASELINES} times")
        survivors = [mutant for mutant in chosen if survives(copy, mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} faults noticed")
    return 1 if survivors else 0


def survives(copy: Path, mutant: Mutant) -> bool:
    file = copy / mutant.file
    text = file.read_text()
    file.write_text(mutated(text, mutant))
    try:
        unnoticed = passes(copy)
    finally:
        file.write_text(text)
    print(f"{'SURVIVES' if unnoticed else 'killed':9} {mutant.fault}", flush=True)
    return unnoticed


def mutated(text: str, mutant: Mutant) -> str:
    if text.count(mutant.before) != 1:
        raise SystemExit(
            f"{mutant.fault!r}: its text stands {text.count(mutant.before)} times in {mutant.file}, not once"
        )
    return text.replace(mutant.before, mutant.after)


def passes(copy: Path) -> bool:
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
