"""What the submitit executor remembers and understands, and how its profile is linked; the rest is in test_slurm.py."""

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import ROOT

from fusion import interruption
from fusion.device import require_gpu
from snakemake_executor_plugin_submitit import outcome
from snakemake_executor_plugin_submitit.elsewhere import Left, _refusal
from snakemake_executor_plugin_submitit.entries import Batch, Entries, Place
from snakemake_executor_plugin_submitit.journal import Journal
from snakemake_executor_plugin_submitit.life import Life, Patience
from snakemake_executor_plugin_submitit.lock import Lock, _begin
from snakemake_executor_plugin_submitit.room import Room
from snakemake_executor_plugin_submitit.slurm import NOT_NOW, VAGUE, State, is_full, refusal
from snakemake_executor_plugin_submitit.tidy import Tidying
from snakemake_executor_plugin_submitit.voice import queue

BATCH = [[("a", "1", "x"), ("b", "2", "x")], [("c", "3", "x")]]


def journal_of_one_batch(folder: Path) -> Journal:
    journal = Journal(folder)
    (folder / "one.0123abcd").mkdir()
    journal.submitting("one.0123abcd", BATCH, "slurm")
    journal.submitted("one.0123abcd", "77")
    return journal


def test_a_journal_remembers_what_is_not_over(tmp_path: Path) -> None:
    journal = journal_of_one_batch(tmp_path)
    journal.over("a")
    journal.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"over": "b')  # the process died here
    journal = Journal(tmp_path, pytest.fail)
    assert journal.places.keys() == {"b", "c"}
    assert journal.places["b"] == Place("one.0123abcd", task=0, index=1, work="2", inputs="x")
    assert journal.batches["one.0123abcd"].job_id(journal.places["c"].task) == "77_1"
    journal.over("b")
    journal.over("c")
    journal.close()
    assert [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    Journal(tmp_path).close()
    assert (tmp_path / "journal.jsonl").read_text() == ""  # nothing is open: it does not grow for ever


def test_what_ended_well_unneeded_lives_no_more_and_is_forgotten_with_its_files(tmp_path: Path) -> None:
    journal = journal_of_one_batch(tmp_path)
    for output in ("a", "c"):
        outcome.write(journal.outcome_file(journal.places[output]), outcome.Outcome("", "host", 1.0, 2.0, 3.0))
        journal.ended(output)
    for name in ("77_submitted.pkl", "77_0_result.pkl", "0.0.started"):  # its process is over
        (tmp_path / "one.0123abcd" / name).touch()
    assert journal.live.keys() == {"b"} and journal.places.keys() == {"a", "b", "c"}
    journal.over("b")
    journal.over("c")
    journal.close()
    Tidying(tmp_path, lambda: {batch.name for batch in journal.batches.values() if batch.open}, keep=10).tidy()
    journal = Journal(tmp_path, pytest.fail)
    assert not journal.live and journal.places.keys() == {"a"} and journal.outcome(journal.places["a"])
    journal.close()
    os.utime(tmp_path / "one.0123abcd", (0, 0))
    Tidying(tmp_path, lambda: set(), keep=10).tidy()
    journal = Journal(tmp_path, pytest.fail)
    assert not journal.places and (tmp_path / "journal.jsonl").read_text() == ""
    journal.close()


def test_a_later_submission_of_an_output_replaces_the_earlier(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for name, work in {"one.0123abcd": "1", "one.0123abce": "2"}.items():
        (tmp_path / name).mkdir()
        journal.submitting(name, [[("a", work, "")]], "slurm")
    place = journal.places["a"]
    assert (place.batch, place.work) == ("one.0123abce", "2")
    assert not journal.batches["one.0123abcd"].open
    journal.close()


def test_a_batch_may_be_unlisted_for_as_long_as_the_run_that_submitted_it_says(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    seconds = {"one.0123abcd": 30.0, "one.0123abce": 30.0, "one.0123abcf": 180.0}
    for name, patience in seconds.items():
        (tmp_path / name).mkdir()
        cluster = "local on here" if name.endswith("f") else "slurm"
        journal.submitting(name, [[(name, "1", "")]], cluster, patience)
    journal.cancelled("one.0123abce")
    now = time.time()
    journal.submitted("one.0123abcd", "77")
    journal.close()
    batches = Entries(tmp_path).batches
    known = batches["one.0123abcd"]
    assert known.sent >= now  # sbatch may have been tried for long
    left = {name: batch.unlisted_for(max(batch.time, batch.sent) + 10) for name, batch in batches.items()}
    assert left == {"one.0123abcd": pytest.approx(20), "one.0123abce": 0, "one.0123abcf": 0}
    assert known.unlisted_for(known.sent + 40) == 0


def test_what_has_no_id_yet_and_may_be_in_the_queue_is_refused_by_its_name() -> None:
    batches = [Batch("one.0123abcd", 1, time=90.0, patience=30.0), Batch("two.0123abcd", 1, 5.0, id="77", sent=95.0)]
    left = {"one.0123abcd": Left(batches[0], ["a"]), "77": Left(batches[1], ["b"])}
    words = _refusal("slurm", {}, left, "back", now=100.0)
    assert "they make a, b): back; or cancel them with `scancel 77`, `scancel --name=one.0123abcd`;" in words
    assert words.endswith("or wait 175 seconds: what is not listed then counts as gone")
    words = _refusal("slurm", {"8": left["77"]}, {"one.0123abcd": left["one.0123abcd"]}, "back", now=100.0)
    assert words.endswith("back; or cancel them first with `scancel 8`, `scancel --name=one.0123abcd`")


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (b'{"version": 2, "event": "unknown"}', True),
        (b'{"version": 2, "batch": "gone.123", "id": "5"}', True),
        (b'{"version": 3, "over": "a"}', True),
        (b'{"version": 2, "batch": "one.0123abcd", "jobs": 7}', True),
        (b"\0\0\0\0", True),
        (b"\xe4 not UTF-8", True),
        (b"[1, 2]", True),
        (b'"over"', True),
        (b"null", True),
        (b"", False),
    ],
)
def test_a_line_that_says_nothing_is_set_aside_and_named(tmp_path: Path, line: bytes, known: bool) -> None:
    journal_of_one_batch(tmp_path).close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    told: list[str] = []
    journal = Journal(tmp_path, told.append)
    assert journal.places.keys() == {"a", "b", "c"} and journal.batches["one.0123abcd"].id == "77"
    journal.close()
    assert [f"1 lines of {path} cannot be read" in text for text in told] == [True] * known
    kept = [file.read_bytes() for file in tmp_path.glob("journal.damaged-*")]
    assert kept == [line + b"\n"] * known
    Journal(tmp_path, pytest.fail).close()  # said once


def test_a_batch_whose_line_is_lost_is_known_from_its_folder(tmp_path: Path) -> None:
    journal_of_one_batch(tmp_path).close()
    (tmp_path / "journal.jsonl").write_bytes(b"\0" * 300)
    (tmp_path / "two.0123abcf").mkdir()  # of this one nothing is left
    journal = Journal(tmp_path, lambda text: None)
    assert journal.places["c"] == Place("one.0123abcd", task=1, index=0, work="3", inputs="x")
    assert journal.batches["one.0123abcd"].id == "" and journal.lost == ["two.0123abcf"]
    journal.close()


def test_of_two_batches_for_an_output_the_later_counts_whichever_is_read_last(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for name in ("one.0123abcd", "one.0123abce"):
        (tmp_path / name).mkdir()
        journal.submitting(name, [[("a", "1", "")]], "slurm")
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"\0\0\n" + path.read_bytes().split(b"\n", 1)[1])
    for tell in (lambda text: None, pytest.fail):
        journal = Journal(tmp_path, tell)
        assert journal.places["a"].batch == "one.0123abce" and not journal.batches["one.0123abcd"].open
        journal.close()


def test_only_files_of_submissions_are_removed(tmp_path: Path) -> None:
    well, failed, open_, late = (tmp_path / f"rule.0000000{i}" for i in range(4))
    for folder in (well, failed, open_, late, tmp_path / "thesis", tmp_path / "other.00000009"):
        folder.mkdir()
    for folder in (well, failed, open_, late):
        for name in ("7_submitted.pkl", "7_0_result.pkl", "0.0.started"):
            (folder / name).touch()
        error = "ValueError" if folder == failed else ""
        outcome.write(folder / "0.0.json", outcome.Outcome(error, "host", 1.0, 2.0, 3.0))
    (late / "7_0_result.pkl").unlink()  # its process is still at work
    (tmp_path / "other.00000009/mine.txt").touch()
    tidying = Tidying(tmp_path, lambda: {open_.name}, keep=10)
    tidying.tidy()
    assert not well.exists() and failed.exists() and open_.exists() and late.exists()
    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0))
    tidying.tidy()
    assert {folder.name for folder in tmp_path.iterdir()} == {open_.name, "thesis", "other.00000009"}


class Queue:
    """A scheduler with so many jobs of this user."""

    is_slow = True

    def __init__(self, states: dict[str, State]) -> None:
        self.listed = states

    def states(self, ids: object) -> dict[str, State]:
        return self.listed

    def in_queue(self) -> int:
        return len(self.listed)


def test_no_more_jobs_than_there_may_be_are_given_at_a_time() -> None:
    queue = Queue({"1": State("RUNNING", ""), "2": State("COMPLETING", ""), "3": State("COMPLETED", "")})
    room = Room(queue, {"_nodes": 3}, pause=0.0)  # pyright: ignore[reportArgumentType]
    room.has(["1", "2", "3"], {"_nodes": 1})
    assert room.of(5, {"_nodes": 1}) == 1 and not room.why
    room.took(["4"], {"_nodes": 1})
    assert room.of(5, {"_nodes": 1}) == 0  # the last one is not listed yet
    assert room.why == "SLURM has all that jobs: 3 allows"


def test_a_limit_of_one_resource_leaves_room_for_jobs_that_take_none_of_it() -> None:
    queue = Queue({"1": State("RUNNING", ""), "2": State("RUNNING", "")})
    room = Room(queue, {"_nodes": 8, "gpus": 4}, pause=9000.0)  # pyright: ignore[reportArgumentType]
    room.has(["1"], {"_nodes": 1})  # of an earlier process, which did not say what else it takes
    room.has(["1"], {"_nodes": 1, "gpus": 2})
    room.took(["2"], {"_nodes": 1, "gpus": 1})
    assert room.of(5, {"_nodes": 1, "gpus": 1}) == 1
    assert room.of(5, {"_nodes": 1, "gpus": 2}) == 0 and room.why == "SLURM has all that --resources gpus=4 allows"
    assert room.of(5, {"_nodes": 1, "gpus": 0}) == 5 and room.of(7, {"_nodes": 1}) == 6


def test_a_limit_is_halved_and_is_final_only_where_nothing_is_left_to_wait_for() -> None:
    queue = Queue({"1": State("RUNNING", "")})
    room, one = Room(queue, {"_nodes": 100}, pause=0.0), {"_nodes": 1}  # pyright: ignore[reportArgumentType]
    assert room.of(9, one) == 9 and room.refused(9) and room.of(9, one) == 4 and room.refused(4) and room.refused(2)
    assert room.refused(1) and room.refused(1)
    queue.listed = {}
    assert room.refused(1) and not room.refused(1)


def test_a_journal_of_the_first_version_is_read_and_its_jobs_count_as_changed(tmp_path: Path) -> None:
    lines = [{"batch": "one.0123abcd", "time": 1.0, "jobs": [[["a", "1"]]]}, {"batch": "one.0123abcd", "id": "77"}]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(tmp_path, pytest.fail)
    assert (
        journal.places["a"] == Place("one.0123abcd", 0, 0, work="", inputs="")
        and journal.batches["one.0123abcd"].id == "77"
    )
    journal.close()


def test_a_journal_has_one_holder(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(RuntimeError, match=r"process .* submits from"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_without_flock_a_file_is_the_lock_and_outlives_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_flock(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_flock)
    lock = Lock(tmp_path / "lock")
    with pytest.raises(RuntimeError, match=rf"process {os.getpid()} on .* submits from .*; where it runs no more"):
        Lock(tmp_path / "lock")
    lock.close()
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = tmp_path / "lock.owner"
    owner.write_text(f"process {killed.pid} on {socket.gethostname()} since {_begin(killed.pid)}\n")
    with pytest.raises(RuntimeError, match=f"process {killed.pid} on"):
        Lock(tmp_path / "lock")
    killed.kill()
    killed.wait()
    Lock(tmp_path / "lock").close()
    owner.write_text("process 1 on another-host since 1.00\n")
    with pytest.raises(RuntimeError, match=f"remove {owner}"):
        Lock(tmp_path / "lock")


@pytest.mark.parametrize("text", ["", "{", '{"version": 1}', '{"version": 9, "error": ""}', "[]", "\0\0"])
def test_an_outcome_that_says_nothing_is_no_end(tmp_path: Path, text: str) -> None:
    path = tmp_path / "0.0.json"
    assert outcome.read(path) is None
    path.write_text(text)
    with pytest.raises(outcome.Damaged, match=f"{path} cannot be read"):
        outcome.read(path)
    ended = outcome.Outcome("", "host", 1.0, 2.0, 3.0)
    outcome.write(path, ended)
    assert outcome.read(path) == ended


@pytest.mark.parametrize(
    ("state", "taken_up", "seconds"),
    [
        (State("FAILED", "NonZeroExitCode"), False, 30),
        (State("CANCELLED", "None"), True, 30),
        (State("COMPLETED", "None"), False, 180),
        (State("COMPLETED", "None"), True, 180),
        (None, False, 180),
        (None, True, 30),
    ],
)
def test_an_outcome_is_awaited_for_longer_where_the_job_may_have_ended_well(
    state: State | None, taken_up: bool, seconds: float
) -> None:
    life, patience = Life(taken_up), Patience(latency=30, long=180)
    life.look(state, now=100)
    life.look(state, now=110)
    assert not life.is_due(state, patience, now=99 + seconds) and life.is_due(state, patience, now=100 + seconds)
    life.look(State("RUNNING", "None"), now=120)
    assert life.was_alive and not life.is_due(state, patience, now=10_000)


@pytest.mark.parametrize(
    ("words", "full"),
    [
        ("sbatch: error: AssocMaxSubmitJobLimit; sbatch: error: Batch job submission failed: " + VAGUE, True),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit; sbatch: error: " + VAGUE, True),
        ("sbatch: error: QOSMaxCpuPerJobLimit; sbatch: error: " + VAGUE, False),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (" + VAGUE + ")", True),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: invalid partition specified: nowhere", False),
    ],
)
def test_a_limit_is_told_from_what_can_never_be(words: str, full: bool) -> None:
    assert is_full(words) == full


def test_the_queue_is_told_in_one_line() -> None:
    jobs = [
        ("a", 100.0, State("PENDING", "Priority")),
        ("b", 40.0, State("PENDING", "AssocGrpGRES")),
        ("c", 90.0, State("PENDING", "Priority")),
        ("d", 0.0, State("RUNNING", "None")),
        ("e", 0.0, None),
    ]
    expected = (
        "in the queue: 3 pending (2 Priority, 1 AssocGrpGRES), 1 running, 1 not in the last answer of SLURM, "
        "4 not submitted yet (a limit), 7 waiting for their bundles to fill; the longest waits 10 min: b"
    )
    held = ["4 not submitted yet (a limit)", "7 waiting for their bundles to fill"]
    assert queue(jobs, held, now=640.0) == expected


@pytest.mark.parametrize(
    ("state", "over", "hopeless"),
    [
        (State("RUNNING", "None"), False, False),
        (State("PENDING", "Resources"), False, False),
        (State("PENDING", "PartitionTimeLimit"), False, True),
        (State("PENDING", "QOSMaxGRESPerJob"), False, True),
        (State("PENDING", "BeginTime"), False, False),
        (State("PREEMPTED", "None"), True, False),
        (State("OUT_OF_MEMORY", "OutOfMemory"), True, False),
    ],
)
def test_states_say_whether_a_job_is_over_or_would_wait_for_ever(state: State, over: bool, hopeless: bool) -> None:
    assert (bool(state.end), state.hopeless) == (over, hopeless)


def test_a_scheduler_that_is_away_is_told_from_one_that_refuses() -> None:
    assert NOT_NOW.search("sbatch: error: Batch job submission failed: Unable to contact slurm controller")
    text = "Traceback\nsbatch: error: Batch job submission failed: Invalid partition name specified\nmore"
    assert not NOT_NOW.search(text)
    assert refusal(RuntimeError(text)) == "sbatch: error: Batch job submission failed: Invalid partition name specified"


def test_a_stage_hears_that_it_is_to_stop_only_while_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption._Request, "made", False)
    assert not interruption.ask()
    monkeypatch.setattr(interruption._Request, "made", False)
    with interruption.listening():
        assert not interruption.asked()
        assert interruption.ask() and interruption.asked()


def test_a_missing_gpu_is_an_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSION_DEVICE", raising=False)
    with pytest.raises(RuntimeError, match=r"asked for 99 GPU and PyTorch sees .*profiles/slurm"):
        require_gpu(99)
    monkeypatch.setenv("FUSION_DEVICE", "cpu")
    require_gpu(99)


def test_make_links_the_profile_and_never_replaces_what_is_there(tmp_path: Path) -> None:
    def link() -> "subprocess.CompletedProcess[str]":
        command = ["make", "-C", str(ROOT), "--no-print-directory", "slurm-profile", f"XDG_CONFIG_HOME={tmp_path}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    profile = tmp_path / "snakemake/slurm"
    assert link().returncode == 0 and profile.resolve() == ROOT / "profiles/slurm"
    assert link().returncode == 0 and profile.resolve() == ROOT / "profiles/slurm"
    profile.unlink()
    profile.mkdir()
    (profile / "config.yaml").write_text("mine")
    refused = link()
    assert refused.returncode != 0 and "left as it is" in refused.stderr
    assert (profile / "config.yaml").read_text() == "mine"


def test_the_page_shows_the_script_that_there_is() -> None:
    page = (ROOT / "docs/slurm.md").read_text()
    assert f"```bash\n{(ROOT / 'profiles/slurm/driver.sh').read_text()}```" in page
