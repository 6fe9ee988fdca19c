"""A real SLURM on this machine: munged, slurmctld and slurmd in a folder of their own, on loopback, with fake GPUs.

Two partitions share the node: jobs of `high` preempt those of `low`, which are requeued. There is no accounting, so
sacct has nothing to say, unless it is asked for: then slurmdbd keeps it in a MariaDB of its own, and enforces limits.
More nodes, of a partition `all`, and more lines of slurm.conf are there on demand.
`Slurm.start` installs the Debian packages where it may (root, apt-get).
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import waiting
from waiting import BACKSTOP, wait_for

HOST = socket.gethostname().partition(".")[0]
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
ACCOUNTING_PACKAGES = ("slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
WITH_ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge/munge.sock
AccountingStorageEnforce=associations,limits"""
DBD_CONFIG = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={dbd_port}
CommunicationParameters=NoInAddrAny
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
"""
CPUS, GPUS, GPU, MEMORY = 16, 2, "a100", 16000  # what the node says it has
PATIENCE = 50  # looks at the jobs before it helps those that do not end: a failure is no matter of it
LONG, SHORT = 20, 2  # seconds that a client tries to reach slurmctld, and while it is known to be down
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
CONFIG = """
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
SlurmdPort={slurmd_port}
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
AuthType=auth/munge
# a requeued job waits for cred_expire seconds before it can start again, 120 by default
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
{accounting}
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1,bf_resolution=1
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
EnforcePartLimits=NO
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=60
MessageTimeout={long}
# a slow machine is no broken one: by default a connection has 2 seconds, and a job 10 to begin
TCPTimeout=30
BatchStartTimeout=600
EpilogMsgTime=0
CompleteWait=0
MaxArraySize={max_array}
MaxJobCount=20000
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:{gpu}:{gpus} State=UNKNOWN
PartitionName=high Nodes={host} DefaultTime=10 MaxTime=2000 DefMemPerCPU=64 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes={host} Default=YES DefaultTime=10 MaxTime=2000 DefMemPerCPU=64 PriorityTier=1 {preemption}
"""


class NoSlurm(Exception):
    """Why no SLURM can be started here."""


class Slurm:
    """One SLURM, with its daemons as children of this process."""

    def __init__(
        self, folder: Path, max_array: int = 1001, accounting: bool = False, lines: str = "", nodes: Sequence[str] = ()
    ) -> None:
        """lines: more of slurm.conf, where {folder} stands for the folder; nodes: more than the one, without GPUs."""
        self.folder, self._accounting = folder, accounting
        self._max_array, self._lines, self._nodes = max_array, lines, nodes
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._before: dict[str, str | None] = {}

    def start(self) -> None:
        """Starts the daemons and lets this process and its children find them. NoSlurm with the reason if it cannot."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        install(PACKAGES, PROGRAMS)
        if self._accounting:
            install(ACCOUNTING_PACKAGES, ACCOUNTING_PROGRAMS)
        for name in ("etc", "run", "log", "munge", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        self._configure()
        self._environ("SLURM_CONF", str(self.folder / "etc/slurm.conf"))
        self._environ("PATH", f"{SBIN}:{os.environ['PATH']}")
        munge, key = self.folder / "munge", self.folder / "munge/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        self._spawn(
            "munged", "--foreground", "--force", f"--socket={munge}/munge.sock", f"--key-file={key}",
            f"--pid-file={self.folder}/run/munged.pid", f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={munge}/seed", "--num-threads=2",
        )  # fmt: skip
        self._wait(lambda: _says("munge", "-n", "-S", f"{munge}/munge.sock"), "munged")
        if self._accounting:
            self._start_accounting()
        self.start_controller()
        for name in (HOST, *self._nodes):
            self._spawn("slurmd", "-D", "-N", name, name=f"slurmd {name}")
            state = partial(_output, "sinfo", "--noheader", f"--nodes={name}", "--format=%T")
            self._wait(lambda state=state: "idle" in state(), f"slurmd {name}")

    def start_controller(self) -> None:
        """Starts slurmctld, or starts it again with the state it had."""
        self._let_clients_wait(LONG)
        self._spawn("slurmctld", "-D")
        self._wait(lambda: _says("scontrol", "ping"), "slurmctld")

    def stop_controller(self) -> None:
        """Ends slurmctld; running jobs go on, and sbatch and squeue soon find that nobody answers."""
        self._end("slurmctld")
        self._let_clients_wait(SHORT)

    def stop(self) -> None:
        """Cancels all jobs and ends the daemons."""
        if "slurmctld" in self._daemons:
            self.clear()
        nodes = [f"slurmd {name}" for name in (HOST, *self._nodes)]
        for name in ("slurmctld", *nodes, "slurmdbd", "mariadbd", "munged"):
            self._end(name)
        for name, value in self._before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        self._before.clear()

    def clear(self) -> None:
        """Cancels all jobs and waits until they are gone."""
        waiting.run(["scancel", f"--user={os.getuid()}"])
        for _ in range(PATIENCE):
            if not self.jobs():
                return
            time.sleep(0.1)
        # of a job that ended while slurmctld was down, slurmd says so again only after a minute
        for state in ("DOWN", "RESUME"):
            waiting.run(["scontrol", "update", f"NodeName={HOST}", f"State={state}", "Reason=clear"])
        wait_for(lambda: not self.jobs(), "jobs to be cancelled", by=self._daemons["slurmctld"], state=self.jobs)

    def is_over(self) -> bool:
        """Whether any of the daemons has ended."""
        return any(daemon.poll() is not None for daemon in self._daemons.values())

    def jobs(self) -> dict[str, str]:
        """The state of every job that is not over, by its id, once slurmctld answers."""
        answers: list[str] = []

        def ask() -> bool:
            command = ["squeue", "--noheader", "--array", "--format=%i %T"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            answers.append(done.stderr if done.returncode else done.stdout)
            return done.returncode == 0

        wait_for(ask, "an answer of squeue", by=self._daemons.get("slurmctld"), state=lambda: answers[-1])
        return dict(line.split() for line in answers[-1].splitlines())

    def _configure(self) -> None:
        devices = [self.folder / f"etc/nvidia{i}" for i in range(GPUS)]
        for device in devices:  # a device file a GPU: SLURM then sets CUDA_VISIBLE_DEVICES
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")
        facts = {
            "host": HOST,
            "user": _output("id", "-un").strip(),
            "folder": self.folder,
        }
        port, dbd_port = _free_ports(26817), _free_ports(30001)
        facts |= {"dbd_port": dbd_port, "sql_port": dbd_port + 1}
        self._sql_port = dbd_port + 1
        facts["accounting"] = (WITH_ACCOUNTING if self._accounting else NO_ACCOUNTING).format(**facts)
        sizes = {"cpus": CPUS, "gpus": GPUS, "gpu": GPU, "memory": MEMORY, "max_array": self._max_array, "long": LONG}
        sizes["preemption"] = "PreemptMode=REQUEUE GraceTime=120"
        text = CONFIG.format(**facts, **sizes, port=port, slurmd_port=port + 1)
        (self.folder / "etc/slurm.conf").write_text(text + self._more())
        (self.folder / "etc/gres.conf").write_text(
            f"AutoDetect=off\nName=gpu Type={GPU} File={self.folder}/etc/nvidia[0-{GPUS - 1}]\n"
        )
        (self.folder / "etc/cgroup.conf").touch()
        dbd = self.folder / "etc/slurmdbd.conf"
        dbd.write_text(DBD_CONFIG.format(**facts))
        dbd.chmod(0o600)  # it holds a password

    def _more(self) -> str:
        """The lines of slurm.conf that were asked for, and those of more nodes."""
        lines = [self._lines.replace("{folder}", str(self.folder))]
        for name in self._nodes:
            port, size = _free_ports(33001 + 2 * len(lines)), f"CPUs={CPUS} RealMemory={MEMORY}"
            lines.append(f"NodeName={name} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={port} {size} State=UNKNOWN")
        if self._nodes:
            lines.append(f"PartitionName=all Nodes={','.join((HOST, *self._nodes))} MaxTime=2000 DefMemPerCPU=64")
        return "\n".join([*lines, ""])

    def _start_accounting(self) -> None:
        """Starts a database and slurmdbd, with this cluster, and this user in the accounts `rich` and `poor`.

        At most one job of `poor` may be in the queue.
        """
        user, data = _output("id", "-un").strip(), self.folder / "sql"
        options = [f"--user={user}", f"--datadir={data}", "--auth-root-authentication-method=normal"]
        subprocess.run(["mariadb-install-db", *options], capture_output=True, check=True)
        first = self.folder / "etc/first.sql"
        statements = ("CREATE USER slurm@127.0.0.1 IDENTIFIED BY 'slurm';", "GRANT ALL ON *.* TO slurm@127.0.0.1;")
        first.write_text("\n".join(statements) + "\n")  # the server reads a statement a line
        self._spawn(
            "mariadbd", f"--user={user}", f"--datadir={data}", f"--socket={self.folder}/run/sql.sock",
            "--bind-address=127.0.0.1", f"--port={self._sql_port}", f"--pid-file={self.folder}/run/sql.pid",
            f"--init-file={first}", "--skip-name-resolve",
        )  # fmt: skip
        self._wait(lambda: _accepts(self._sql_port), "mariadbd")
        self._spawn("slurmdbd", "-D")
        self._wait(lambda: _says("sacctmgr", "--noheader", "show", "cluster"), "slurmdbd")
        for what in (
            ["cluster", "mini"], ["account", "rich"], ["account", "poor"], ["user", user, "account=rich"],
            ["user", user, "account=poor", "MaxSubmitJobs=1"],
        ):  # fmt: skip
            subprocess.run(["sacctmgr", "--immediate", "add", *what], capture_output=True, check=True)

    def _let_clients_wait(self, seconds: int) -> None:
        """Sets how long a client, which reads slurm.conf when it starts, tries to reach slurmctld."""
        path = self.folder / "etc/slurm.conf"
        path.write_text(re.sub(r"(?m)^MessageTimeout=.*$", f"MessageTimeout={seconds}", path.read_text()))

    def _environ(self, name: str, value: str) -> None:
        self._before[name] = os.environ.get(name)
        os.environ[name] = value

    def _spawn(self, program: str, *options: str, name: str = "") -> None:
        with open(self.folder / f"log/{name or program}.out", "ab") as log:
            self._daemons[name or program] = subprocess.Popen(
                [program, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _end(self, program: str) -> None:
        daemon = self._daemons.pop(program, None)
        if daemon:
            daemon.terminate()
            try:
                daemon.wait(BACKSTOP)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _wait(self, condition: Callable[[], bool], program: str) -> None:
        what = f"{program} to be ready; see {self.folder}/log"
        wait_for(condition, what, by=self._daemons[program], state=lambda: self._last_words(program))

    def _last_words(self, program: str) -> str:
        log = self.folder / f"log/{program}.out"
        return log.read_text(errors="replace")[-500:] if log.is_file() else ""


def install(packages: Sequence[str], programs: Sequence[str]) -> None:
    """Installs the packages where one of the programs is missing. NoSlurm with the reason if it cannot."""
    path = f"{SBIN}:{os.environ['PATH']}"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if not missing:
        return
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise NoSlurm(f"no SLURM here ({', '.join(missing)} missing), and no root with apt-get to install it")
    policy = Path("/usr/sbin/policy-rc.d")  # keeps the packages from starting services
    own = not policy.exists()
    if own:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    try:
        done = waiting.run(command, env=environment)
        if done.returncode:  # package lists may be old or missing
            waiting.run(["apt-get", "update", "-qq"], env=environment)
            done = waiting.run(command, env=environment)
    finally:
        if own:
            policy.unlink()
    if done.returncode:
        raise NoSlurm(f"SLURM could not be installed: {done.stdout.strip()[-300:]}")


def _free_ports(first: int) -> int:
    """A port from there on that is free, as is the next one; processes that look at the same time find others."""
    for port in range(first + 2 * (os.getpid() % 500), first + 3000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise NoSlurm(f"no free port from {first} to {first + 3000}")


def _accepts(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _says(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":  # python tests/mini_slurm.py FOLDER COMMAND…: runs a command with a SLURM
    import sys

    slurm = Slurm(Path(sys.argv[1]).absolute())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        slurm.start()
        code = subprocess.run(sys.argv[2:], check=False).returncode
    finally:
        slurm.stop()
    sys.exit(code)
