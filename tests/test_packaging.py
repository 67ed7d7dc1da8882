"""What is installed works elsewhere: sdist, the wheel made of it, both import names, every adapter."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECK = """
import importlib, pathlib, sys
import mlxpy, mlxjobs
assert pathlib.Path(mlxjobs.__file__).is_relative_to(sys.argv[1]), mlxjobs.__file__
assert pathlib.Path(mlxpy.__file__).is_relative_to(sys.argv[1]), mlxpy.__file__
assert mlxpy.launch is mlxjobs.launch
from mlxpy.data_structures.contrib.artifacts import NumpyArray
from mlxjobs.cluster import registry
known = registry.known()
assert {"SLURMScheduler", "LocalScheduler"} <= set(known), known
from mlxjobs.cluster.script import render_script
from mlxjobs.scheduler import Job
run = pathlib.Path("/run")
for path in known.values():
    job = Job("x-1", run / "script.sh", run / "out", run / "err", run, ["true"])
    assert render_script(job, registry.load(path)).startswith("#!/bin/bash")
"""


@pytest.mark.timeout(600)
def test_the_wheel_of_the_sdist_works_elsewhere(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns(".git", ".venv*", "logs", "*cache*", "dist")
    shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=ignore)
    # without --sdist or --wheel the wheel is made of the sdist
    build = [sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(tmp_path / "source")]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mlxjobs", "mlxpy"}
    target = tmp_path / "elsewhere"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    # -P and the order of the path: the checkout, which is installed editable, must not win
    check = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(target)!r})\n{CHECK}", str(target)]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_links_to_the_top_level_folders_are_links() -> None:
    for name in ("schedulers", "templates"):
        assert (ROOT / "mlxjobs" / name).readlink() == Path("..") / name
