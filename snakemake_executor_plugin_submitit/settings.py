"""What a user may set, and what Snakemake is told of this executor."""

from dataclasses import dataclass, field
from pathlib import Path

from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=0,
)


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings: `--submitit-poll` and so on, or `submitit-poll:` in a profile."""

    cluster: str = field(
        default="slurm", metadata={"help": "Where jobs run: 'slurm', or 'local' for processes of this machine."}
    )
    folder: Path = field(
        default=Path(".snakemake/submitit"),
        metadata={"help": "Where submitit keeps its files; all nodes must see it."},
    )
    poll: float = field(default=10.0, metadata={"help": "Seconds between two queries of the scheduler."})
    array_limit: int = field(default=1000, metadata={"help": "The most tasks of one job array."})
    bundle_wait: float = field(
        default=60.0,
        metadata={"help": "Seconds for which a job that is to share a SLURM job (resource bundle) waits for others."},
    )
    max_timeouts: int = field(
        default=3, metadata={"help": "How often a job that reaches its time limit is started again."}
    )
    signal_delay: int = field(
        default=120, metadata={"help": "Seconds before the time limit at which a job is asked to stop."}
    )
    devices: str = field(
        default="", metadata={"help": "With cluster=local: the GPUs to share out, such as '0,1'; all by default."}
    )
    patience: float = field(
        default=180.0,
        metadata={"help": "Seconds for which the result of a job is awaited that may have ended well."},
    )
    report: float = field(
        default=300.0, metadata={"help": "Seconds without other news after which the queue is described in a line."}
    )
    keep_failed: float = field(
        default=10.0,
        metadata={"help": "Days for which submitit's files of jobs are kept that failed, or that no run needed."},
    )
    setup: str = field(
        default="",
        metadata={"help": "Lines of shell before each job, such as 'module load cuda'; the job fails where one fails."},
    )
    python: str = field(
        default="",
        metadata={
            "help": "The Python of jobs, such as 'apptainer exec --nv image.sif python'; by default this interpreter."
        },
    )
