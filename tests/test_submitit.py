"""What the submitit executor remembers and understands, and how its profile is linked; the rest is in test_slurm.py."""

import json
import subprocess
from pathlib import Path

import pytest
from tiny import ROOT

from fusion import interruption
from fusion.device import require_gpu
from snakemake_executor_plugin_submitit.journal import Journal
from snakemake_executor_plugin_submitit.slurm import NOT_NOW, State, refusal


def test_a_journal_remembers_what_is_not_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.submitting("one.ab", [[("a", "1"), ("b", "2")], [("c", "3")]])
    journal.submitted("one.ab", "77")
    journal.over("a")
    journal.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"over": "b')  # the process died here
    journal = Journal(tmp_path)
    places = {output: journal.place(output) for output in "abc"}
    assert places["a"] is None
    assert (places["b"].task, places["b"].index, places["b"].digest) == (0, 1, "2")  # pyright: ignore
    assert journal.batches["one.ab"].job_id(places["c"].task) == "77_1"  # pyright: ignore
    journal.over("b")
    journal.over("c")
    journal.close()
    assert [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    Journal(tmp_path).close()
    assert (tmp_path / "journal.jsonl").read_text() == ""  # nothing is open: it does not grow for ever


def test_a_later_submission_of_an_output_replaces_the_earlier(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.submitting("one.ab", [[("a", "1")]])
    journal.submitting("one.cd", [[("a", "2")]])
    place = journal.place("a")
    assert place is not None and (place.batch, place.digest) == ("one.cd", "2")
    assert not journal.batches["one.ab"].open
    journal.close()


def test_a_journal_has_one_holder(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(RuntimeError, match=r"process .* submits from"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


@pytest.mark.parametrize(
    ("state", "over", "hopeless"),
    [
        (State("RUNNING", "None"), False, False),
        (State("PENDING", "Resources"), False, False),
        (State("PENDING", "PartitionTimeLimit"), False, True),
        (State("PENDING", "QOSMaxGRESPerJob"), False, True),
        (State("PENDING", "BeginTime"), False, False),
        (State("PREEMPTED", "None"), False, False),  # it is about to be requeued
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
