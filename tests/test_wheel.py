"""What a wheel carries: the package, its types marker and the bundled strategies, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_carries_the_strategies_and_sets_up_a_folder_anywhere(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling (extra dev) builds the wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
        licence = next(name for name in names if name.endswith("licenses/LICENSE"))
        assert "Apache License" in archive.read(licence).decode()
    assert "yieldlab/py.typed" in names
    bundled = {Path(name).name for name in names if name.startswith("yieldlab/_bundled/strategies/")}
    assert bundled == {path.name for path in (ROOT / "strategies").glob("*.py")}
    assert "highest_apy.py" in bundled
    foreign = [name for name in names if not name.startswith(("yieldlab/", "yieldlab-"))]
    assert foreign == []
    assert not [name for name in names if name.endswith((".parquet", ".csv", ".nbi", ".nbc"))]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    init = [sys.executable, "-m", "yieldlab", "init", "lab"]
    subprocess.run(init, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "lab" / "strategies").iterdir()} == bundled
    found = [sys.executable, "-c", "import yieldlab; print(yieldlab.__file__)"]
    origin = subprocess.run(found, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(origin.strip()) == tmp_path / "installed" / "yieldlab" / "__init__.py"
