"""How the process of a job is started: the lines of shell before it, the Python that it is, and the call of sbatch."""

import re
import shlex
import sys
import sysconfig
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths

from fusion.job import MINUTES

from .environment import command
from .gpus import in_gres

# a job that does not listen yet would die of SLURM's warning; it ignores that, and is requeued when it is preempted
DEAF = """sh -c 'trap "" USR2; exec "$@"' sh"""
CHECKED = (
    "set -eE",
    "trap 'echo \"error: {what}: $BASH_COMMAND ended with exit code $?\" >&2' ERR",
    "{lines}",
    "trap - ERR; set +eE",
)
# of the environment, for the job: how long before its end SLURM warns it, in seconds
DELAY = "FUSION_SIGNAL_DELAY"


@dataclass(frozen=True)
class Launch:
    """What the user wants to happen before a job, and which Python is to run it.

    setup: lines of shell, before any job; precommand: what Snakemake's --precommand says, before jobs that no Snakemake
    of their own runs; python: a command, this interpreter where it is empty.
    """

    setup: str = ""
    python: str = ""
    precommand: str = ""

    @property
    def interpreter(self) -> str:
        """The command that is the job's Python."""
        return self.python.strip() or shlex.quote(sys.executable)

    def lines(self, is_stage: bool, delay: int) -> list[str]:
        """What the script of a job does before; a line that fails ends the job."""
        found = [f"export {DELAY}={delay}"]
        if self.python.strip():  # it is not told where this package is by an installation of its own
            found.append(f"export PYTHONPATH={shlex.quote(':'.join(shared_path()))}${{PYTHONPATH:+:$PYTHONPATH}}")
        for what, lines in (("submitit-setup", self.setup), ("--precommand", self.precommand * is_stage)):
            if lines.strip():
                found += [line.format(what=what, lines=lines.rstrip()) for line in CHECKED]
        return found


def here(launch: Launch, is_stage: bool) -> str:
    """The same for a process of this machine: a command that is the job's Python, after what is to happen before."""
    script = "\n".join([*launch.lines(is_stage, delay=0), f'exec {launch.interpreter} "$@"'])
    return f"bash -c {shlex.quote(script)} bash"


class Sbatch(submitit.SlurmExecutor):
    """submitit's executor, with SLURM's own environment and several functions as one array."""

    def __init__(self, folder: Path, max_timeouts: int, launch: Launch) -> None:
        super().__init__(folder, max_num_timeout=max_timeouts, python=f"{DEAF} {launch.interpreter}")
        self._launch = launch

    def set(self, wanted: dict[str, Any], name: str, delay: int, is_stage: bool) -> None:
        """Takes the parameters of `resources.parameters`."""
        options = {key.removeprefix("slurm_"): value for key, value in wanted.items()}
        options["time"] = options.pop("timeout_min")
        delay = min(delay, 30 * options["time"])  # at most half the limit
        if in_gres(options) is not None:
            options.pop("gpus_per_node", None)
        # what a job is given is not always passed on to its step
        srun = ["--export=ALL", f"--cpus-per-task={options['cpus_per_task']}"]
        setup = [f"export {MINUTES}={options['time']}", *self._launch.lines(is_stage, delay)]
        self.update_parameters(
            **options, job_name=name, signal_delay_s=delay, setup=setup, srun_args=srun, wckey=None
        )  # fmt: skip

    def send(self, functions: Sequence[Callable[[], Any]]) -> str:
        """The id of the job, or of the array; the errors are those of submitit."""
        files = []
        for function in functions:
            delayed = DelayedSubmission(function)
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            files.append(Path(self.folder) / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(files[-1])
        if len(files) > 1:
            self.parameters |= {"map_count": len(files), "array_parallelism": len(files)}
        identifier = self._submit_command(self._submitit_command_str).job_id
        for task, file in enumerate(files):
            name = f"{identifier}_{task}" if len(files) > 1 else identifier
            JobPaths(self.folder, job_id=name).move_temporary_file(file, "submitted_pickle")
        return identifier

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return command(*super()._make_submission_command(submission_file_path))

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        text = string.decode() if isinstance(string, bytes) else string
        found = re.findall(r"^Submitted batch job (\d+)", text, re.MULTILINE)  # a site may have it say more
        return found[-1] if found else submitit.SlurmExecutor._get_job_id_from_submission_command(text)


def shared_path() -> list[str]:
    """Of `sys.path`, what is not the interpreter's own: another one could not use its packages."""
    own = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    packages = {"site-packages", "dist-packages"}
    places = [Path(place) for place in sys.path if place and not place.endswith(".zip")]
    return [
        str(place)
        for place in places
        if not packages & set(place.parts) and not any(place.is_relative_to(library) for library in own)
    ]
