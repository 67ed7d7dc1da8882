"""What is installed where a run is launched: recorded as it is, and printed as pip and conda take it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlxjobs.code import environment
from tests.code.repos import git, new_repo, write
from tests.project import Project

QUICK = "import mlxpy\n@mlxpy.launch(config_path='./configs')\ndef main(ctx): pass\nmain()\n"
RECORD = "+mlxpy.version_manager.compute_requirements=true"
# pip's own reading of a requirements file: what it would install, from where
PIP = """
import sys
from pip._internal.network.session import PipSession
from pip._internal.req.constructors import install_req_from_parsed_requirement
from pip._internal.req.req_file import parse_requirements
for parsed in parse_requirements(sys.argv[1], session=PipSession()):
    one = install_req_from_parsed_requirement(parsed)
    print(one.name, one.req.specifier if one.req and not one.link else one.link.url, one.editable, sep="|")
"""


def install(site: Path, name: str, origin: Any = None, version: str = "1.0", by: str = "pip") -> None:
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    write(site, {f"{info}/METADATA": about, f"{info}/INSTALLER": f"{by}\n"})
    if origin is not None:
        write(site, {f"{info}/direct_url.json": json.dumps(origin)})


def editable(folder: Path) -> Any:
    return {"url": folder.as_uri(), "dir_info": {"editable": True}}


def recorded(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    environment.record_environment()  # python imports some of what it needs here only now
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(site)])
        return environment.record_environment()


def test_what_a_run_was_launched_with_is_what_pip_would_install(tmp_path: Path) -> None:
    site, lib = tmp_path / "site", new_repo(tmp_path / "lib", {"py/setup.py": "", "x": ""})
    install(site, "edited", editable(lib / "py"))
    install(site, "odd", editable(tmp_path / "a folder"))
    install(site, "of-debian", version="1.1ubuntu2")
    write(lib, {"x": "edited"})
    head = git(lib, "rev-parse", "HEAD")
    project = Project(tmp_path / "proj", main=QUICK)

    project.run(RECORD, env={"PYTHONPATH": str(site)})  # without a version manager, too
    text = project.mlxjobs("env", "1").stdout

    (project.folder / "old.txt").write_text(text)
    said = project.command(sys.executable, "-c", PIP, "old.txt").stdout.splitlines()
    assert f"edited|git+{lib.as_uri()}@{head}#egg=edited&subdirectory=py|False" in said
    assert f"None|file://{tmp_path}/a%20folder|True" in said
    assert f"pytest|=={pytest.__version__}|False" in said
    assert not [line for line in said if "ubuntu" in line]
    lines = text.splitlines()
    assert sys.version.split()[0] in lines[1]
    assert any(line.startswith("# had edits that no commit holds: edited") for line in lines)
    assert "# not for pip: 'of-debian==1.1ubuntu2'" in lines
    assert json.loads(project.mlxjobs("env", "1", "--json").stdout)["environment"]["dirty"][0] == "edited"
    assert "was not launched in a conda environment" in project.mlxjobs("env", "1", "--conda", code=2).stderr


def test_an_environment_of_any_size_is_handed_on_to_the_snapshot(tmp_path: Path) -> None:
    url = "https://host.org/" + "x" * 2**17  # more than a variable takes, as are thousands of distributions
    install(tmp_path / "site", "large", {"url": url})
    project = Project(tmp_path / "proj", main=QUICK)
    project.commit()
    frozen = ("+mlxpy.use_version_manager=true", "+mlxpy.interactive_mode=false")
    project.run(*frozen, RECORD, env={"PYTHONPATH": str(tmp_path / "site")})
    assert f"large @ {url}" in project.info()["version_manager"]["requirements"]


def test_a_run_that_recorded_none_says_how_to_have_it(tmp_path: Path) -> None:
    project = Project(tmp_path / "proj", main=QUICK)
    project.run()
    assert RECORD in project.mlxjobs("env", "1", code=2).stderr
    assert "has no run 7" in project.mlxjobs("env", "7", code=2).stderr
    project.run(RECORD)
    assert json.loads(project.mlxjobs("env", "2-2", "--json").stdout)["id"] == 2


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://ada:ghp_token@host.org/lib.git", "https://host.org/lib.git"),
        ("git@host.org:ada/lib.git", "ssh://git@host.org/ada/lib.git"),
        ("/srv/lib.git", None),  # a path of this machine says less than the folder itself
    ],
)
def test_an_editable_install_is_named_where_others_find_it_without_a_password(
    remote: str, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lib = new_repo(tmp_path / "lib")
    git(lib, "remote", "add", "origin", remote)
    install(tmp_path / "site", "lib", editable(lib))
    head = git(lib, "rev-parse", "HEAD")

    local = recorded(tmp_path / "site", monkeypatch)  # never pushed: only this machine has it
    git(lib, "update-ref", "refs/remotes/origin/main", head)
    pushed = recorded(tmp_path / "site", monkeypatch)

    assert local["requirements"] == [f"lib @ git+{lib.as_uri()}@{head}"]
    assert pushed["requirements"] == [f"lib @ git+{shown or lib.as_uri()}@{head}"]
    assert "dirty" not in pushed["environment"]


def test_a_folder_with_its_own_egg_info_is_editable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = "Metadata-Version: 2.1\nName: here\nVersion: 1\n"
    write(tmp_path, {"here.egg-info/PKG-INFO": about, "pyproject.toml": ""})
    write(tmp_path, {"~ere-1.dist-info/METADATA": about.replace("here", "torn")})
    assert recorded(tmp_path, monkeypatch)["requirements"] == [f"-e {tmp_path}"]


@pytest.mark.parametrize(
    "origin",
    [
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"url": "file:///x", "dir_info": 5}',
        b'{"url": "git+x", "vcs_info": 5}',
        b'{"url": "file:///x\\u0000", "dir_info": {"editable": true}}',
    ],
)
def test_odd_files_of_an_installer_do_not_keep_a_run_from_its_start(
    origin: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = "Metadata-Version: 2.1\nName: tool\nVersion: 1\n"
    write(tmp_path, {"tool-1.dist-info/METADATA": about, "old-1.dist-info/METADATA": ""})
    (tmp_path / "tool-1.dist-info" / "direct_url.json").write_bytes(origin)
    (tmp_path / "old-1.dist-info" / "METADATA").write_bytes(b"Name: old\nVersion: 1\nAuthor: \xe9\n")
    assert recorded(tmp_path, monkeypatch)["requirements"] == ["tool==1"]


def test_a_conda_environment_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix, channel = tmp_path / "envs" / "torch", "https://conda.anaconda.org/t/tk-123/my-lab/linux-64"
    for name, where in (("numpy", "https://conda.anaconda.org/conda-forge/linux-64"), ("ours", channel)):
        about = {"name": name, "version": "1.2", "build": "h0_1", "channel": where}
        write(prefix, {f"conda-meta/{name}-1.2-h0_1.json": json.dumps(about)})
    write(prefix, {"conda-meta/torn-1-0.json": "{"})
    # conda's packages name the folder where they were built
    install(prefix / "site", "numpy", {"url": "file:///home/conda/work", "dir_info": {}}, "1.2", by="conda")
    install(prefix / "site", "tool")
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setenv("CONDA_PREFIX", str(prefix))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "my env")

    facts = recorded(prefix / "site", monkeypatch)

    assert facts["requirements"] == ["numpy==1.2", "tool==1.0"]
    assert yaml.safe_load(environment.as_conda(facts["environment"]) or "") == {
        "name": "my env",
        "channels": ["conda-forge", "my-lab", "nodefaults"],
        "dependencies": [
            "conda-forge::numpy=1.2=h0_1",
            "my-lab::ours=1.2=h0_1",
            {"pip": ["tool==1.0"]},
        ],
    }


def test_what_another_user_planted_as_a_requirement_is_a_comment() -> None:
    planted = [
        "b==1\n--index-url http://evil",
        "-r /etc/passwd",
        "--pre",
        "-e /x --no-index",
        "-e ../y",
    ]
    text = environment.as_requirements("x\u2028y", ["a==1", *planted], {"python": "3\nevil"})
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["a==1"]


def test_pip_finds_nothing_to_do_where_the_same_is_installed(tmp_path: Path) -> None:
    lines = [line for line in environment.record_environment()["requirements"] if "==" in line]
    (tmp_path / "old.txt").write_text(environment.as_requirements("here", lines, {}))
    argv = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--dry-run", "-r", "old.txt"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout
