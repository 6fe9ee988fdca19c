import re
from functools import cache

from fusion import look, record
from fusion.artifacts import digest, require_writable, sha256
from fusion.estimate import rates
from fusion.estimate.asked import Asked
from fusion.estimate.check import brief
from fusion.estimate.jobs import Jobs
from fusion.estimate.table import by_stage
from fusion.plan import read
from fusion.pipelines import parts
from fusion.provenance import PACKAGE, code_hash
from fusion.published import read_published, zero_shot
from fusion.staleness import decide_by_records
from snakemake_executor_plugin_submitit.asked import show_in_dry_runs
from snakemake_executor_plugin_submitit.beside import hold_free_for_any

decide_by_records()
PLAN = read(config)
ASKED = Asked(Jobs(PLAN, rates.read(PLAN.config.rates)))
show_in_dry_runs(lambda: brief(ASKED.jobs))
RUN = f"{PLAN.config.results}/{PLAN.config.run}"
SHARED = f"{PLAN.config.results}/shared"
require_writable(RUN)
PUBLISHED = read_published(PLAN.config.backbones)
ZERO_SHOT = {name: zero_shot(PUBLISHED, name) for name in PLAN.config.backbones}
ADAPTERS = [mode for mode in PLAN.config.modes if PLAN.rows.modes[mode].adapter]

TAKEN = [PLAN.rows.checkpoints[name] for name in PLAN.config.checkpoints]  # models that are not fine-tuned here


wildcard_constraints:
    seed=r"\d+",
    off_diagonal="[^/]+",
    version="[0-9a-f]{8}",
    backbone="[^/]+",
    mode="[^/]+",
    space="weight|adapter",
    suite="[^/]+",
    method="[^/]+",
    task="[^/]+",
    corruption="[a-z_]+",
    severity="[1-5]",


@cache
def backbone(name):
    """What stages need of a backbone's row."""
    return PLAN.rows.backbones[name].model_dump(include={"kind", "options"})


def compiled_backbone(name):
    """The same for stages that compile it, where its row says so."""
    return backbone(name) | {"compile": True} if PLAN.rows.backbones[name].compile else backbone(name)


@cache
def pretrained_settings(name):
    """Where a backbone's weights come from, and how they are read."""
    source = first_source(PLAN.rows.backbones[name], lambda row: row.source(), pretrained(name))
    return {"row": backbone(name), "source": source.model_dump()}


def task_source(name):
    """The first of a task's sources that can be read here."""
    return first_source(PLAN.rows.tasks[name], lambda row: row.source(PLAN.rows.archives), data(name))


def first_source(row, find, made):
    """The source that is read; where none is there any more, the folder that `made` was made from."""
    try:
        return find(row)
    except ValueError:
        if not (kept := record.sources(made)) or not kept["paths"]:
            raise
        folders = [source for source in row.sources if source.folder is not None]
        read = [source for source in folders if kept["paths"][0].startswith(f"{source.folder}/")]
        return (read or folders)[0]


@cache
def task_settings(name):
    """A task's row with the one source that is read."""
    row, source = PLAN.rows.tasks[name], task_source(name)
    archives = [source.archive] if source.archive else []
    return row.model_dump() | {"sources": [source.model_dump()], "name": name, "archives": archives}


@cache
def task_files(name):
    """What is in the files of a task's source, as far as the prepared data depends on it."""
    return looked(lambda: task_source(name), data(name), f"task {name!r} (config/tasks.yaml)")


@cache
def pretrained_files(name):
    """The same of a backbone's weights."""
    source = lambda: PLAN.rows.backbones[name].source()
    return looked(source, pretrained(name), f"backbone {name!r} (config/backbones.yaml)")


@cache
def checkpoint_files(backbone, mode, task):
    """The same of a model that somebody else fine-tuned."""
    source = lambda: PLAN.checkpoint(backbone, mode, task)
    # no older result stands for it: without its source, Snakemake would fine-tune in its place
    return looked(source, None, f"checkpoint of {task!r} for {backbone}, {mode} (config/checkpoints.yaml)")


def looked(source, made, what):
    """What the files hold. Where some are `gone`, what all held when `made` was made from them; else an error."""
    paths = []
    try:
        found = source()
        refs = [str(ref) for ref in [found.ref()] if ref]
        paths = found.paths()
        return look.look(paths, PLAN.config.hash_sources) | {"refs": refs}
    except (OSError, ValueError) as error:
        kept = record.sources(made) if made else None
        if kept is None:
            raise ValueError(f"{what}: {error}; its sources must be there until it is prepared") from error
        if changed := record.changed(made, paths):
            raise ValueError(
                f"{what}: {error}, and {changed[0]} is not as it was when the task was prepared from both; put back "
                "what is gone"
            ) from error
        return kept | {"gone": f"{what}: {error}"}


def source_files(seen):
    """Source files as inputs: none that are gone, or Snakemake would take what was made from them for a source; and
    none with braces, which it takes for wildcards. Records alone decide what is stale."""
    return [path for path in seen["paths"] if "gone" not in seen and not set("{}") & set(path)]


def prepared():
    """What was seen of the sources of every task and backbone, and the folder that is made from them, by name."""
    tasks = dict.fromkeys(task for suite in PLAN.config.suites for task in tested_tasks(suite))
    seen = {name: (task_files(name), data(name)) for name in tasks}
    return seen | {name: (pretrained_files(name), pretrained(name)) for name in PLAN.config.backbones}


def check_sources():
    """An error for the first task, backbone or checkpoint whose sources are missing and that is not prepared yet; a
    warning for each that is."""
    for found, made in prepared().values():
        if "gone" in found and workflow.is_main_process:
            logger.warning(f"{found['gone']}; what was prepared from it before takes its place: {made}")
    for row in TAKEN:
        for task in PLAN.tasks:
            checkpoint_files(row.backbone, row.mode, task)


def said_of_sources():
    """A line for every task and model: how many local source files were looked at, and how many were new."""
    for name, (found, made) in prepared().items():
        if found["files"] and "gone" not in found:
            yield f"{name}: looked at {found['files']:,} source files, {record.new_files(made, found):,} new or changed"


def tested_tasks(suite):
    return [*PLAN.rows.suites[suite].tasks, *PLAN.rows.suites[suite].unseen]


@cache
def data(task, condition=""):
    """The folder of a prepared task: shared by all runs that define the task alike, and by no other."""
    folder = f"{SHARED}/data/{task}-{version(PLAN.rows.tasks[task])}"
    return f"{folder}.{condition}" if condition else folder


@cache
def pretrained(backbone):
    """The folder of θ0, shared in the same way."""
    return f"{SHARED}/pretrained/{backbone}-{version(PLAN.rows.backbones[backbone])}"


def version(row):
    """What tells a row from others of its name: its values, and those of the archives it reads."""
    archives = [archive_settings(source.archive) for source in row.sources if source.archive]
    return digest([row.model_dump(), archives])[:8]


def archive_settings(name):
    """An archive's row as it was written, so that a key that only some rows have makes nothing of the others stale."""
    return PLAN.rows.archives[name].model_dump(exclude_defaults=True)


def archive(name):
    return f"{SHARED}/archives/{name}-{PLAN.rows.archives[name].file()}"


def head(backbone, task):
    return f"{RUN}/heads/{backbone}/{task}.safetensors"


def init(wildcards):
    """The adapters' initial value; nothing for a mode that has none."""
    return [f"{RUN}/init/{wildcards.backbone}/{wildcards.mode}/seed{wildcards.seed}"] * (wildcards.mode in ADAPTERS)


def finetuned(backbone, mode, task, seed):
    return f"{RUN}/finetuned/{backbone}/{mode}/{task}/seed{seed}"


def taken_backbone():
    """What the wildcard is where a backbone and mode have a row of checkpoints; the names may be any."""
    places = "|".join(re.escape(f"{row.backbone}/{row.mode}/") for row in TAKEN)
    return f"(?={places})[^/]+" if TAKEN else "none"


def multitask(backbone, mode, suite, seed):
    return f"{RUN}/multitask/{backbone}/{mode}/{suite}/seed{seed}"


def suite(name):
    return PLAN.rows.suites[name].tasks


def tested(wildcards):
    """The tasks that a model is scored on: all of its suite; of an individual model its own, if the run wants no more."""
    is_own = "task" in wildcards.keys() and not PLAN.config.evaluate.cross_task
    return [wildcards.task] if is_own else tested_tasks(wildcards.suite)


def tested_data(wildcards):
    """Every task with the test pictures that the suite's models are scored on."""
    return [data(task, PLAN.rows.suites[wildcards.suite].condition) for task in tested(wildcards)]


def tested_heads(wildcards):
    return [head(wildcards.backbone, task) for task in tested(wildcards)]


def suite_data(wildcards):
    return [data(task, PLAN.rows.suites[wildcards.suite].condition) for task in suite(wildcards.suite)]


def clean_data(wildcards):
    return [data(task) for task in suite(wildcards.suite)]


def suite_heads(wildcards):
    return [head(wildcards.backbone, task) for task in suite(wildcards.suite)]


def suite_models(wildcards):
    w = wildcards
    return [finetuned(w.backbone, w.mode, task, w.seed) for task in suite(w.suite)]


def suite_statistics(wildcards):
    """The statistics that a method takes, of every task's model or of all; nothing where it takes none, or cannot merge."""
    w = wildcards
    if PLAN.reason(w.mode, w.space, w.method):
        return []
    found = [name for need, name in {"fishers": "fisher", "grams": "gram"}.items() if need in PLAN.needs(w.method)]
    places = [f"{w.backbone}/{w.mode}/{w.space}/{task}/seed{w.seed}" for task in suite(w.suite)]
    made = [f"{name}/{place}" for name in found for place in places]
    of_all = [f"{w.suite}/{off_diagonal}" for off_diagonal in PLAN.off_diagonals(w.method)]
    made += [f"merged_gram/{w.backbone}/{w.mode}/{w.space}/{one}/seed{w.seed}" for one in of_all]
    return [f"{RUN}/statistics/{one}.safetensors" for one in made]


def method_modules(method):
    """What a fusion by this method imports beside the stage."""
    needs = ["fusion.needs"] if PLAN.labelled(method) else []
    return [f"fusion.methods.{part}" for part in parts(PLAN.rows.methods[method].algorithm)] + needs


def bundled(wildcards):
    """How many fusions by a method share one job of a cluster: those that take long, none."""
    return 1 if PLAN.adapt(wildcards.method) else 16


def finetuned_models():
    """Every model to fine-tune."""
    run = PLAN.config
    of_run = {"backbone": run.backbones, "mode": run.modes, "seed": run.seeds}
    paths = expand(finetuned("{backbone}", "{mode}", "{task}", "{seed}"), task=PLAN.tasks, **of_run)
    if run.multitask:
        paths += expand(multitask("{backbone}", "{mode}", "{suite}", "{seed}"), suite=trained_suites(), **of_run)
    return paths


def trained_suites():
    """The suites that multi-task models are trained for: one of those with the same tasks."""
    return [name for name in PLAN.config.suites if PLAN.trained_in(name) == name]


def evaluated():
    """The path of every scored model, reference or fused, without folder and ending."""
    return [*references(), *fused()]


def references():
    run = PLAN.config
    paths = expand("{backbone}/pretrained/{suite}", backbone=run.backbones, suite=run.suites)
    for name in run.suites:
        paths += expand(
            "{backbone}/{mode}/individual/{suite}/{task}/seed{seed}",
            backbone=run.backbones, mode=run.modes, suite=name, task=suite(name), seed=run.seeds,
        )  # fmt: skip
    if run.multitask:
        paths += expand(
            "{backbone}/{mode}/multitask/{suite}/seed{seed}",
            backbone=run.backbones, mode=run.modes, suite=run.suites, seed=run.seeds,
        )  # fmt: skip
    return paths


def fused(made=False):
    """Every fused model as it is scored; made: those that fusing makes, which may be scored on several suites."""
    run = PLAN.config
    return [
        f"{backbone}/{mode}/{space}/{suite}/{method}/seed{seed}"
        for backbone in run.backbones
        for mode in run.modes
        for method in run.methods
        for space in PLAN.spaces(mode, method)
        for suite in [*run.suites, *PLAN.subsets]
        if not made or PLAN.fused_in(suite, method) == suite
        for seed in run.seeds
    ]


def kept(path):
    """What one fused model takes up, deleted when nothing needs it any more where the run keeps none."""
    return path if PLAN.config.keep_fused else temp(path)


def fused_model(w):
    """The folder of the model that is scored."""
    suite = PLAN.fused_in(w.suite, w.method)
    return f"{RUN}/fused/{w.backbone}/{w.mode}/{w.space}/{suite}/{w.method}/seed{w.seed}"


def similarities():
    run = PLAN.config
    return [
        f"{RUN}/similarity/{backbone}/{mode}/{space}/{suite}/seed{seed}.parquet"
        for backbone in run.backbones
        for mode in run.modes
        for space in PLAN.rows.modes[mode].spaces
        for suite in trained_suites()
        for seed in run.seeds
    ]


def evaluation(method, method_class):
    """A function of the wildcards: the settings of scoring a model on a suite."""

    def settings(wildcards):
        name, condition = method or wildcards.method, PLAN.rows.suites[wildcards.suite].condition
        return {
            "backbone": compiled_backbone(wildcards.backbone),
            "domain": PLAN.rows.tasks[suite(wildcards.suite)[0]].modality,
            "tasks": tested(wildcards),
            "n_tasks": len(suite(wildcards.suite)),
            "unseen": PLAN.rows.suites[wildcards.suite].unseen,
            "corruption": condition,
            "method": name,
            "method_class": method_class or PLAN.method_class(name),
            "evaluate": PLAN.config.evaluate.model_dump(exclude={"cross_task"}),
            "zero_shot": ZERO_SHOT.get(wildcards.backbone, {}) if name == "pretrained" and not condition else {},
        }

    return settings


check_sources()
