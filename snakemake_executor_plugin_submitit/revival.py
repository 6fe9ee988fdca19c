"""Jobs that SLURM holds because their node could not launch them: "launch failed requeued held".

SLURM no longer says where that was, and drains the node in most cases. A node counts as the culprit if it was taken out
of service at the time of the job's last launch, or later.
"""

import re
import subprocess

from .environment import environment

TIMES = 3  # that a job is released
SECONDS = 20  # that a call of SLURM may take
HELD = "launch_failed_requeued_held"
NONE = ("", "(null)")


def revive(identifier: str) -> bool:
    """Excludes the culprits where other nodes are left, and releases the job; whether the job was held at all."""
    job = fields(_answer("scontrol", "show", "job", "--oneliner", identifier))
    if job.get("Reason") != HELD:
        return False
    listed = _answer("sinfo", "--noheader", "--Node", f"--partition={job['Partition']}", "--format=%N|%H")
    if avoided := excluded(job, listed):
        _answer("scontrol", "update", f"JobId={identifier}", f"ExcNodeList={','.join(avoided)}")
    _answer("scontrol", "release", identifier)
    return True


def fields(shown: str) -> dict[str, str]:
    """What `scontrol show job --oneliner` says, by name."""
    return dict(re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", shown))


def excluded(job: dict[str, str], listed: str) -> list[str]:
    """The nodes that the job is to avoid from now on; none if no other would be left.

    listed: a line a node of the job's partition, its name and since when it is out of service.
    """
    rows = [line.strip().split("|") for line in listed.splitlines() if "|" in line]
    launch = job.get("LastSchedEval", "")  # times are written alike, and compare as they are
    culprits = {name for name, since in rows if since[:1].isdigit() and since >= launch}
    before = job.get("ExcNodeList", "")
    if not culprits or {name for name, _ in rows} <= culprits or job.get("ReqNodeList", "") not in NONE:
        return []
    return [*([] if before in NONE else [before]), *sorted(culprits)]


def _answer(*command: str) -> str:
    """What a program of SLURM prints; nothing where it does not answer."""
    options = {"capture_output": True, "text": True, "check": False, "env": environment()}
    try:
        return subprocess.run(command, timeout=SECONDS, **options).stdout
    except (subprocess.TimeoutExpired, OSError):
        return ""
