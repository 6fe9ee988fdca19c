"""What results say that they were made from, and what source files count as."""

import os
import shutil
from pathlib import Path

import pytest

from fusion import look, record
from fusion.artifacts import read_json
from fusion.data.rows import SourceRow
from fusion.job import Job, run
from fusion.rows import hub_ref


def copy(job: Job) -> None:
    """A stage: output `a` is input `a` and the setting."""
    text = Path(job.input["a"]).read_text() if "a" in job.input else ""
    Path(job.output["a"]).write_text(text + str(job.params["settings"]))


def job(folder: Path, number: int, settings: object = 1, **params: object) -> Job:
    """The job that makes file `number` of a chain in the folder."""
    given = {"a": str(folder / str(number - 1))} if number else {}
    return Job("test_record:copy", given, {"a": str(folder / str(number))}, {"settings": settings, **params})


def test_a_result_is_current_until_a_setting_an_input_or_its_own_file_is_another(tmp_path: Path) -> None:
    for number in range(3):
        run(job(tmp_path, number))
    assert all(record.is_current(job(tmp_path, number)) for number in range(3))
    assert not record.is_current(job(tmp_path, 1, settings=2))
    run(job(tmp_path, 1, settings=2))
    assert record.is_current(job(tmp_path, 0)) and not record.is_current(job(tmp_path, 2)), "its input is another now"
    run(job(tmp_path, 1))
    assert record.is_current(job(tmp_path, 2)), "the input is again what it was"
    (tmp_path / "2").write_text("cut")
    assert not record.is_current(job(tmp_path, 2))


def save(job: Job) -> None:
    """A stage: output `a` is a folder as of a model, its weights larger than what is hashed whole."""
    folder = Path(job.output["a"])
    folder.mkdir()
    (folder / "model.bin").write_bytes(bytes([job.params["settings"]]) * (record.SMALL + 9))
    (folder / "facts.json").write_text(str(job.params["settings"]))


@pytest.mark.parametrize("file", ["model.bin", "facts.json"])
def test_a_file_of_another_result_that_has_as_many_bytes_is_noticed(tmp_path: Path, file: str) -> None:
    jobs = [Job("test_record:save", {}, {"a": str(tmp_path / str(n))}, {"settings": n}) for n in range(2)]
    for made in jobs:
        run(made)
    assert all(map(record.is_current, jobs))
    shutil.copyfile(tmp_path / "1" / file, tmp_path / "0" / file)
    assert [record.is_current(made) for made in jobs] == [False, True]


def test_what_an_operating_system_leaves_in_a_result_does_not_count_but_a_missing_file_does(tmp_path: Path) -> None:
    made = Job("test_record:save", {}, {"a": str(tmp_path / "model")}, {"settings": 0})
    run(made)
    for name in (".DS_Store", "Thumbs.db", ".snakemake_timestamp"):
        (tmp_path / "model" / name).write_text("x")
    assert record.is_current(made)
    (tmp_path / "model/facts.json").unlink()
    (tmp_path / "model/other.json").write_text("0")
    assert not record.is_current(made)


def test_a_copied_folder_is_current_and_one_without_a_record_is_not(tmp_path: Path) -> None:
    for number in range(2):
        run(job(tmp_path / "", number))
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    moved = tmp_path.parent / "copy"
    os.utime(moved / "0")  # newer than what was made from it
    assert record.is_current(job(moved, 1))
    record.place(moved / "1").unlink()
    assert not record.is_current(job(moved, 1))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0, "made": "x"}', '{"version": 1}', "\0\0"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, text: str) -> None:
    run(job(tmp_path, 0))
    record.place(tmp_path / "0").write_text(text)
    assert not record.is_current(job(tmp_path, 0))


def test_a_job_that_fails_leaves_no_record_of_what_was_there_before(tmp_path: Path) -> None:
    run(job(tmp_path, 0))
    failing = job(tmp_path, 0)
    failing.params.pop("settings")
    with pytest.raises(KeyError):
        run(failing)
    assert not record.place(tmp_path / "0").exists()


def test_sources_that_changed_since_the_plan_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("1")
    planned = job(tmp_path, 0, sources=look.look([str(tmp_path / "source")]))
    run(planned)
    assert read_json(record.place(tmp_path / "0"))["sources"]["files"] == 1
    (tmp_path / "source").write_text("2")
    with pytest.raises(ValueError, match=r"source changed since the run was planned; run again"):
        run(planned)


def test_a_small_file_counts_by_its_content_whatever_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = look.look([str(path)])["digest"]
    os.utime(path, (0, 0))
    assert look.look([str(path)])["digest"] == before
    path.write_text("two")
    os.utime(path, (0, 0))
    assert look.look([str(path)])["digest"] != before


def pictures(folder: Path) -> Path:
    for number, name in enumerate(("warm/a.png", "warm/deep/b.png", "cold/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(number))
        os.utime(folder / name, (number, number))
    return folder


@pytest.mark.parametrize(
    "change", ["renamed classes", "overwritten", "added below", "removed", "same time, read whole"]
)
def test_a_folder_of_pictures_tells_every_change_of_its_files(tmp_path: Path, change: str) -> None:
    folder, full = pictures(tmp_path / "pictures"), change.endswith("whole")
    before = look.look([str(folder)], full)["digest"]
    if change == "renamed classes":
        (folder / "warm").rename(folder / "x")
        (folder / "cold").rename(folder / "warm")
        (folder / "x").rename(folder / "cold")
    elif change == "overwritten":
        (folder / "warm/a.png").write_text("9")
    elif change == "added":
        (folder / "warm/deep/d.png").write_text("new")
    elif change == "removed":
        (folder / "warm/deep/b.png").unlink()
    else:
        times = (folder / "warm/a.png").stat()
        (folder / "warm/a.png").write_text("9")
        os.utime(folder / "warm/a.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert look.look([str(folder)], full)["digest"] != before


def test_large_class_folders_renamed_into_one_another_are_seen_where_all_files_have_one_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "FEW", 1)
    folder = pictures(tmp_path / "pictures")
    for path in folder.rglob("*.png"):
        os.utime(path, (0, 0))
    (folder / "cold/c.png").rename(folder / "cold/a.png")
    (folder / "warm/deep/b.png").unlink()
    before = look.look([str(folder)])["digest"]
    (folder / "warm").rename(folder / "x")
    (folder / "cold").rename(folder / "warm")
    (folder / "x").rename(folder / "cold")
    assert look.look([str(folder)])["digest"] != before


def test_what_was_recorded_by_time_stays_current_where_a_run_reads_all_and_is_known_by_content_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look, "SMALL", 0)
    source = tmp_path / "source"
    source.write_text("one")
    os.utime(source, (0, 0))

    def now(full: bool) -> Job:
        return job(tmp_path, 0, sources=look.look([str(source)], full))

    run(now(full=False))
    run(job(tmp_path, 1))
    assert record.is_current(now(full=True)) and record.new_files(tmp_path / "0", look.look([str(source)], True)) == 0
    record.remember(now(full=True))
    assert record.is_current(now(full=True)) and record.is_current(job(tmp_path, 1)), "nothing was made anew"
    os.utime(source, (1, 1))
    assert record.is_current(now(full=True)) and not record.is_current(now(full=False))
    record.remember(now(full=True))
    assert record.is_current(now(full=False)), "the new time is that of the same content"
    record.remember(now(full=False))
    source.write_text("two")
    os.utime(source, (1, 1))
    assert not record.is_current(now(full=True)), "the content is still known"


def test_source_files_that_changed_are_told_from_those_that_are_gone(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("train", "test")]
    for path in paths:
        Path(path).write_text("one")
    run(job(tmp_path, 0, sources=look.look(paths)))
    Path(paths[0]).unlink()
    assert record.changed(tmp_path / "0", paths) == []
    Path(paths[1]).write_text("two")
    assert record.changed(tmp_path / "0", paths) == paths[1:]


def test_what_a_killed_job_left_of_its_output_is_removed_and_nothing_of_another(tmp_path: Path) -> None:
    left = [tmp_path / name for name in (".0.1234.tmp", "..0.made.json.99.tmp")]
    others = [tmp_path / name for name in (".0.noise-2.abc.tmp", ".00.77.tmp", ".0.resume.safetensors.5.tmp")]
    for path in (*left, *others):
        path.write_text("half")
    (tmp_path / ".0.abcd1234.tmp").mkdir()
    (tmp_path / ".0.abcd1234.tmp/model").write_text("half")
    run(job(tmp_path, 0))
    assert sorted(path for path in tmp_path.iterdir() if path.suffix == ".tmp") == sorted(others)


def test_what_an_operating_system_leaves_in_a_folder_does_not_count(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures")
    before = look.look([str(folder)])
    for name in (".DS_Store", "warm/Thumbs.db", "cold/._c.png", "__MACOSX/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "warm/a.png").read_text()
    assert look.look([str(folder)]) == before


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    folder, more = pictures(tmp_path / "pictures"), pictures(tmp_path / "more")
    (folder / "warm/more").symlink_to(more)
    (folder / "cold/up").symlink_to(folder)
    assert look.look([str(folder)])["files"] == 6


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere"):
        look.look([str(tmp_path / "nowhere")])


def test_a_branch_of_a_hub_that_names_another_commit_makes_stale_what_was_read_of_it(tmp_path: Path) -> None:
    ref = tmp_path / "datasets--org--name/refs/main"
    sources = look.look([]) | {"refs": [str(ref)]}
    ref.parent.mkdir(parents=True)
    ref.write_text("a" * 40)
    run(job(tmp_path, 0, sources=sources))
    run(job(tmp_path, 1))
    assert record.is_current(job(tmp_path, 0, sources=sources))
    ref.unlink()
    assert record.is_current(job(tmp_path, 0, sources=sources)), "a cache that is gone says nothing"
    ref.write_text("b" * 40)
    assert not record.is_current(job(tmp_path, 0, sources=sources))
    run(job(tmp_path, 0, sources=sources))
    assert not record.is_current(job(tmp_path, 1)), "it was made from the commit before"


def test_a_pinned_commit_has_no_ref_and_a_branch_has_that_of_the_cache() -> None:
    assert hub_ref("models", "org/name", "a" * 40) is None and hub_ref("models", None, None) is None
    found = hub_ref("datasets", "org/name", None)
    assert found is not None and found.parts[-3:] == ("datasets--org--name", "refs", "main")


def test_files_of_a_python_package_are_watched_without_importing_it() -> None:
    form = {"kind": "table", "text": "a", "label": "b"}
    source = SourceRow.model_validate({"package": "fusion.data", "files": {"all": "rows.py"}, "format": form})
    assert [Path(path).is_file() for path in source.paths()] == [True]
    gone = SourceRow.model_validate({"package": "no_such_package.data", "files": {"all": "a"}, "format": form})
    with pytest.raises(ValueError, match="no Python package 'no_such_package'; install it, or add a source"):
        gone.paths()


def test_a_tilde_is_the_home_folder() -> None:
    form = {"kind": "table", "text": "a", "label": "b"}
    source = SourceRow.model_validate({"folder": "~/data", "files": {"all": "a.csv"}, "format": form})
    assert source.paths() == [os.path.expanduser("~/data/a.csv")]
