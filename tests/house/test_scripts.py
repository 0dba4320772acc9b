"""The shell scripts answer quickly and plainly; that they install is for .ci/run to show."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = ("tools/quickstart", "tools/test", "tools/environment.sh", ".ci/run")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are for bash")


def bash(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The accelerator and the interpreter that a test does not set are looked for.
    inherited = {n: v for n, v in os.environ.items() if n not in ("ACCELERATOR", "PYTHON")}
    return subprocess.run(
        ["bash", *command],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def executable(path: pathlib.Path, *lines: str) -> None:
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_well_formed(script: str) -> None:
    result = bash("-n", script)
    assert (result.returncode, result.stderr) == (0, "")
    assert os.access(ROOT / script, os.X_OK) == (not script.endswith(".sh"))


@pytest.mark.parametrize("script", ["tools/quickstart", "tools/test"])
def test_help_installs_nothing(script: str) -> None:
    result = bash(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: ./{script}")


def test_a_wrong_interpreter_is_named(tmp_path: pathlib.Path) -> None:
    old = tmp_path / "python 2.7"
    executable(old, "exit 1")
    result = bash("tools/test", "--version", PYTHON=str(old))
    assert result.returncode == 1
    assert f"PYTHON={old} is not a Python 3.11 or newer" in result.stderr


def test_no_interpreter_says_what_to_install(tmp_path: pathlib.Path) -> None:
    for tool in ("bash", "basename", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    program = "source tools/environment.sh; environment_interpreter"
    result = bash("-c", program, PATH=str(tmp_path))
    assert result.returncode == 1
    assert "apt-get install python3 python3-venv" in result.stderr


def test_a_wrong_accelerator_is_answered_with_the_right_ones() -> None:
    result = bash("tools/test", "--version", ACCELERATOR="abacus")
    assert result.returncode == 1
    assert "choose cpu, cuda, cuda12 or tpu" in result.stderr


@pytest.mark.parametrize("choice", ["cpu", "cuda", "cuda12", "tpu"])
def test_the_accelerator_that_is_asked_for(choice: str) -> None:
    program = "source tools/environment.sh; environment_accelerator"
    assert bash("-c", program, ACCELERATOR=choice).stdout == f"{choice}\n"


@pytest.mark.skipif(pathlib.Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_a_tpu_machine_is_known_by_its_environment() -> None:
    program = "source tools/environment.sh; environment_accelerator"
    assert bash("-c", program, TPU_ACCELERATOR_TYPE="v5litepod-4").stdout == "tpu\n"
