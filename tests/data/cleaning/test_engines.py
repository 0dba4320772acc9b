"""Where and how often a corpus is cleaned does not show: on Ray, by Slurm, after fifty kills."""

import multiprocessing
import os
import pathlib
import random
import signal
import stat
import time

import pytest

from llmjax import data
from llmjax.data.cleaning import engines, pipeline
from tests.data.cleaning.corpus import STEPS, line, made, settings, texts, write

# A cluster of one node, which runs a job at once and then forgets it.
SBATCH = """#!/bin/bash
for last; do :; done
echo "Submitted batch job 7"
grep -q "dependency=" "$last" && exit 0
stop=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$last")
for i in $(seq 0 "$stop"); do
  env SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=here SLURM_JOB_ID=7 bash "$last" >> LOG 2>&1 || exit 1
done
"""
SRUN = """#!/bin/bash
while [ "$1" != launch_pickled_pipeline ]; do shift; done
exec "$@"
"""


def corpus(root: pathlib.Path, count: int = 120) -> pathlib.Path:
    lines = [line(text) for text in texts(count)]
    write(root / "a" / "1.jsonl", [*lines[: count // 2], b"{broken"])
    write(root / "b" / "2.jsonl", lines[count // 2 :])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_engines_do_not_show(
    engine: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datatrove")
    wanted = settings(corpus(tmp_path / "in"), steps=STEPS)
    data.prepare(wanted, tmp_path / "out")
    runner: engines.Engine = engines.Slurm("debug")
    if engine == "ray":
        ray = pytest.importorskip("ray")
        runner = engines.Ray(memory_gb=0.5)
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    else:
        commands = tmp_path / "commands"
        commands.mkdir()
        scripts = {"sbatch": SBATCH.replace("LOG", str(tmp_path / "log")), "srun": SRUN}
        for name in ("squeue", "scontrol"):
            scripts[name] = "#!/bin/bash\n" + ("" if name == "squeue" else "echo here\n")
        for name, script in scripts.items():
            (commands / name).write_text(script)
            (commands / name).chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    data.prepare(wanted, tmp_path / "other", engine=runner)
    assert made(tmp_path / "out") == made(tmp_path / "other")


def test_without_slurm_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = settings(corpus(tmp_path / "in"))
    with pytest.raises(FileNotFoundError, match="sbatch is not installed"):
        data.prepare(wanted, tmp_path / "out", engine=engines.Slurm("debug"))


def test_a_process_that_dies_is_said_and_a_run_goes_on(tmp_path: pathlib.Path) -> None:
    """As the kernel ends a process that wants too much memory."""
    wanted = settings(corpus(tmp_path / "in"), steps=("length",))
    two = engines.Local(2)
    with pytest.raises(RuntimeError, match="fewer workers"), two.start(tmp_path) as run:
        run([_Suicide(), _Suicide()], lambda: None)  # type: ignore[list-item]
    data.prepare(wanted, tmp_path / "out", engine=two)
    data.prepare(wanted, tmp_path / "other")
    assert made(tmp_path / "out") == made(tmp_path / "other")


class _Suicide:
    def run(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def prepare(root: pathlib.Path, output: pathlib.Path, workers: int) -> None:
    wanted = settings(root, steps=STEPS, part_bytes=10_000)
    data.prepare(wanted, output, engine=engines.Local(workers))


@pytest.mark.parametrize(
    ("kills", "workers", "documents"),
    [
        (2, 1, 300),
        pytest.param(50, 1, 2000, marks=pytest.mark.slow),
        pytest.param(10, 2, 2000, marks=pytest.mark.slow),
    ],
)
def test_kills(kills: int, workers: int, documents: int, tmp_path: pathlib.Path) -> None:
    """Killed anywhere and started again, a run loses nothing and has nothing twice."""
    root = corpus(tmp_path / "in", documents)
    # Its children have all modules, and none of the threads that a fork of this process would miss.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llmjax.data.prepare", "scipy.sparse.csgraph", "ftfy", "rensa"])

    def start(output: pathlib.Path) -> multiprocessing.Process:
        process = context.Process(target=prepare, args=(root, output, workers))
        process.start()
        return process

    draw = random.Random(0)
    start(tmp_path / "first").join()
    began = time.monotonic()
    start(tmp_path / "whole").join()
    seconds = time.monotonic() - began
    whole = made(tmp_path / "whole")
    while kills > 0:
        output = tmp_path / f"cut{kills}"
        while True:
            process = start(output)
            process.join(draw.uniform(0.05, 0.9) * seconds)
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills -= 1
        assert process.exitcode == 0
        assert made(output) == whole
        kept = pipeline.read_cleaned(output)
        gone = (item.document for item in pipeline.read_rejected(output))
        ids = [(document.source, document.id) for document in [*kept, *gone]]
        assert len(ids) == len(set(ids)) == documents + 1
