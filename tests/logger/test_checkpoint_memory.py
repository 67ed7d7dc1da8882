"""How much memory a checkpoint takes beside its object, by the peak of a process of its own."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.logger import checkpoints
from mlxjobs.logger.checkpoint_file import Record

MIB = 200

MEASURE = """
import sys
from pathlib import Path
from mlxjobs.logger import checkpoints, pickling
from mlxjobs.logger.checkpoint_file import Record

def peak():
    # not ru_maxrss, which begins with the peak of the process before exec
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024

path, record = Path(sys.argv[1]), Record(1, 1, "last", {{}})
{prepare}
checkpoints.save({{"small": small}}, path, record)
checkpoints.load(path)
{object}
before = peak()
{act}
print(peak() - before)
"""
NUMPY = "import numpy as np; small = np.ones(1)", f"big = np.ones({MIB} << 17)"
TORCH = "import torch; small = torch.ones(1)", f"big = torch.ones({MIB} << 18)"
SAVE = 'checkpoints.save({"model": big}, path, record)'
BACKGROUND = "checkpoints.save(pickling.Pickled({'model': big}), path, record)"
LOAD = (
    "import os\n"
    "if not os.fork():\n"
    f"    {SAVE}\n"
    "    os._exit(0)\n"
    "assert os.wait()[1] == 0\n"
    "big = None\n"
    "loaded = checkpoints.load(path)"
)


def grown(path: Path, what: tuple[str, str], act: str) -> float:
    """MiB by which the peak of a process grows."""
    script = MEASURE.format(prepare=what[0], object=what[1], act=act)
    command = [sys.executable, "-c", script, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("what", [NUMPY, TORCH], ids=["numpy", "torch"])
def test_saving_takes_no_second_copy(tmp_path: Path, what: tuple[str, str]) -> None:
    need(what)
    assert grown(tmp_path / "last.pkl", what, SAVE) < 0.05 * MIB


@pytest.mark.parametrize("what", [NUMPY, TORCH], ids=["numpy", "torch"])
def test_saving_in_the_background_takes_one(tmp_path: Path, what: tuple[str, str]) -> None:
    need(what)
    assert 0.95 * MIB < grown(tmp_path / "last.pkl", what, BACKGROUND) < 1.1 * MIB


def test_checking_before_loading_takes_a_few_blocks(tmp_path: Path) -> None:
    # the object made first is gone by then, so that its memory is there to be used again
    assert grown(tmp_path / "last.pkl", NUMPY, LOAD) < 50


def need(what: tuple[str, str]) -> None:
    if what is TORCH and importlib.util.find_spec("torch") is None:
        pytest.skip("SKIPPED: torch is not installed")


# --- tensors come back as they were


@pytest.fixture
def torch() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "bool", "complex64", "int64", "uint16", "float8_e4m3fn"]
)
def test_tensors_of_every_type_come_back(torch: Any, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "last.pkl"
    for size in (0, 12):
        tensor = torch.arange(size).to(getattr(torch, dtype))
        checkpoints.save({"tensor": tensor, "lambda": lambda: 1}, path, Record(1, 1, "last", {}))
        with open(path, "rb") as file:
            loaded = pickle.load(file)["tensor"]
        assert loaded.dtype == tensor.dtype
        assert loaded.untyped_storage().tolist() == tensor.untyped_storage().tolist()
        loaded.untyped_storage().resize_(1000)


def test_a_model_and_its_optimizer_come_back(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.pkl"
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    model.add_module("tied", model[0])
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    view = torch.arange(12.0).reshape(3, 4).t()[1:]
    state = {"model": model, "optimizer": optimizer.state_dict(), "view": view}
    checkpoints.save(state, path, Record(1, 1, "last", {}))
    loaded = checkpoints.load(path)
    again = loaded["model"]
    assert again[0] is again.tied
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert loaded["view"].stride() == view.stride()
    assert torch.equal(loaded["view"], view)
    moments = loaded["optimizer"]["state"][0]
    assert torch.equal(moments["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert again[0].weight.requires_grad
