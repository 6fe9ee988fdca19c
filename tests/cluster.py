"""A small workflow for a cluster: stages that count, resume and fail, and Snakemake with the submitit executor."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from waiting import Running

ROOT = Path(__file__).parents[1]
STAGES = '''
import fcntl, json, os, time
from pathlib import Path

from fusion.artifacts import new_file
from fusion.interruption import Interrupted, asked, listening
from fusion.job import queue_seconds

def facts(job):
    """What the job sees of the place where it runs."""
    print("a detail for the log")
    names = ["SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "CUDA_VISIBLE_DEVICES",
             "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "SLURM_JOB_PARTITION"]
    began = time.time()
    time.sleep(job.params.get("seconds", 0))
    found = {name: os.environ.get(name, "") for name in names}
    found |= {"gpus": job.gpus, "queue_seconds": queue_seconds(), "pid": os.getpid(), "times": [began, time.time()],
              "folder": os.getcwd()}
    Path(job.output["out"]).write_text(json.dumps(found))

def count(job):
    """Steps of a tenth of a second, kept every ten; the result is the same however often it was interrupted.

    The last step waits for the file `until`, where there is one.
    """
    steps, until = job.params["steps"], Path(job.params.get("until", "."))
    kept, starts = Path(job.output["out"] + ".kept"), Path(job.output["out"] + ".starts")
    step = int(kept.read_text()) if kept.exists() else 0
    print("starting at step", step, flush=True)
    with starts.open("a") as file:
        file.write(f"{step}\\n")
    with listening():
        while step < steps:
            time.sleep(0.1)
            if step < steps - 1 or until.exists():
                step += 1
            if asked() or step % 10 == 0:
                kept.write_text(str(step))
            if asked():
                raise Interrupted
    Path(job.output["out"]).write_text(str(step))

def write(job):
    """A file of so many bytes, written as stages write."""
    with new_file(job.output["out"]) as file:
        file.write_bytes(b"x" * job.params["bytes"])

def alone(job):
    """A job that notes each of its starts, and whether it runs anywhere else meanwhile."""
    with open(job.output["out"] + ".runs", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            words = "start"
        except BlockingIOError:
            words = "twice"
        file.write(words + "\\n")
        file.flush()
        time.sleep(job.params["seconds"])
        Path(job.output["out"]).write_text("made")

def late(job):
    """A job whose outcome appears only when somebody takes the ending away."""
    from snakemake_executor_plugin_submitit import outcome
    write = outcome.write
    outcome.write = lambda path, ended: write(f"{path}.late", ended)
    Path(job.output["out"]).write_text("made")

def die(job):
    print("about to die", flush=True)
    os.kill(os.getpid(), 9)

def fail(job):
    for line in range(40):
        print("line", line)
    raise ValueError("the loss is nan")
'''
RULE = """
rule {name}:
    input: {input}
    output: out="{name}/{{i}}"
    log: "logs/{name}/{{i}}.log"
    benchmark: "benchmarks/{name}/{{i}}.tsv"
    resources: {resources}
    params: stage="cluster_stages:{stage}", **{params!r}
    script: "{script}"
"""


class Sandbox:
    """A folder with a workflow: rules of stages, each with so many jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rules, self._targets = "", []
        self.options = ["--executor", "submitit", "--submitit-poll", "1", "--jobs", "500", "--nolock"]
        self.options += ["--rerun-incomplete", "--keep-going"]
        (folder / "cluster_stages.py").write_text(STAGES)

    def rule(
        self,
        stage: str,
        jobs: int = 1,
        name: str = "",
        resources: str = "runtime=5, mem_mb=100",
        input: str = "",
        **params: Any,
    ) -> None:
        """Adds a rule that calls the stage, and its jobs 0, 1, … to what is to be made."""
        name, given = name or stage, f"given={input!r}" if input else ""
        script = ROOT / "workflow/scripts/stage.py"
        facts = {"name": name, "stage": stage, "resources": resources, "params": params, "input": given}
        self._rules += RULE.format(**facts, script=script)
        self._targets += [f"{name}/{i}" for i in range(jobs)]
        self.add("")

    def add(self, text: str, *targets: str) -> None:
        """Adds rules as they are written, and what they make to what is to be made."""
        self._rules += text
        self._targets += targets
        every = f"rule all:\n    input: {self._targets!r}\n"
        (self.folder / "Snakefile").write_text(every + self._rules)

    def start(self, *options: str) -> Running:
        """Snakemake, started."""
        program = Path(sys.executable).with_name("snakemake")
        return Running([program, *self.options, *options], cwd=self.folder, env=self.environment)

    @property
    def environment(self) -> dict[str, str]:
        """What Snakemake and its jobs need: this interpreter, the stages, and the programs that `wrap` wrote."""
        path = f"{self.folder}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
        found = {"PYTHONPATH": path, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        return {**os.environ, "FUSION_DEVICE": os.environ.get("FUSION_DEVICE", "cpu"), **found}

    def wrap(self, program: str, script: str) -> None:
        """Lets the lines of sh come before the real program, as `exec "$real" "$@"` in them or after them.

        Every call of the program leaves a line in `calls(program)`.
        """
        real, log = shutil.which(program), self.folder / f"{program}.calls"
        path = self.folder / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nreal={real}\necho "$*" >> {log}\n{script}\nexec "$real" "$@"\n')
        path.chmod(0o755)

    def calls(self, program: str) -> list[str]:
        """The arguments of every call of a program that was wrapped."""
        log = self.folder / f"{program}.calls"
        return log.read_text().splitlines() if log.exists() else []

    def run(self, *options: str) -> tuple[int, str]:
        """The exit code and the output of Snakemake."""
        return self.start(*options).finish()

    def release(self) -> None:
        """Lets jobs of the stage `count` with `until="go"` end."""
        (self.folder / "go").touch()

    def facts(self, name: str) -> dict[str, Any]:
        """What a job of the stage `facts` wrote."""
        return json.loads((self.folder / name).read_text())

    def starts(self, name: str) -> list[int]:
        """The steps at which a job of the stage `count` was started, one each time."""
        file = self.folder / f"{name}.starts"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def submitted(self) -> list[dict[str, Any]]:
        """The batches that were submitted, from the journal."""
        lines = (self.folder / ".snakemake/submitit/journal.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if "jobs" in event]
