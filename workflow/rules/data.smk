rule fetch_archive:
    output:
        archive=f"{SHARED}/archives/{{archive}}-{{release}}.{{ending}}",
    log:
        f"{SHARED}/logs/archives/{{archive}}-{{release}}.{{ending}}.log",
    benchmark:
        f"{SHARED}/benchmarks/archives/{{archive}}-{{release}}.{{ending}}.tsv"
    wildcard_constraints:
        release="[^-/]+",
        ending="whl|deb",
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("fetch_archive", 500),
        disk_mb=ASKED.disk("fetch_archive"),
        runtime=ASKED.minutes("fetch_archive", 30),
    params:
        stage="fusion.stages.prepare:fetch_archive",
        settings=lambda w: archive_settings(w.archive),
    script:
        "../scripts/stage.py"


rule prepare_task:
    input:
        archives=lambda w: [archive(name) for name in task_settings(w.task)["archives"]],
        files=lambda w: source_files(task_files(w.task)),
    output:
        data=directory(f"{SHARED}/data/{{task}}-{{version}}"),
    log:
        f"{SHARED}/logs/data/{{task}}-{{version}}.log",
    benchmark:
        f"{SHARED}/benchmarks/data/{{task}}-{{version}}.tsv"
    conda:
        "../envs/stage.yml"
    threads: lambda w: 4 if PLAN.rows.tasks[w.task].modality == "image" else 1  # that decode pictures
    resources:
        mem_mb=ASKED.memory("prepare_task", 1500),
        disk_mb=ASKED.disk("prepare_task"),
        runtime=ASKED.minutes("prepare_task", 30),
    params:
        stage="fusion.stages.prepare:prepare_task",
        code=code_hash("fusion.stages.prepare"),
        settings=lambda w: task_settings(w.task),
        sources=lambda w: task_files(w.task),
    script:
        "../scripts/stage.py"


rule corrupt_task:
    input:
        data=f"{SHARED}/data/{{task}}-{{version}}",
    output:
        data=directory(f"{SHARED}/data/{{task}}-{{version}}.{{corruption}}-{{severity}}"),
    log:
        f"{SHARED}/logs/data/{{task}}-{{version}}.{{corruption}}-{{severity}}.log",
    benchmark:
        f"{SHARED}/benchmarks/data/{{task}}-{{version}}.{{corruption}}-{{severity}}.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("corrupt_task", 2000),
        disk_mb=ASKED.disk("corrupt_task"),
        runtime=ASKED.minutes("corrupt_task", 120, bundle=4),
        bundle=4,
    params:
        stage="fusion.stages.corrupt:corrupt_task",
        code=code_hash("fusion.stages.corrupt"),
        settings=lambda w: {"corruption": w.corruption, "severity": int(w.severity)},
    script:
        "../scripts/stage.py"


rule prepare_backbone:
    input:
        archive=lambda w: [archive(name) for name in [pretrained_settings(w.backbone)["source"]["archive"]] if name],
        files=lambda w: source_files(pretrained_files(w.backbone)),
    output:
        model=directory(f"{SHARED}/pretrained/{{backbone}}-{{version}}"),
    log:
        f"{SHARED}/logs/pretrained/{{backbone}}-{{version}}.log",
    benchmark:
        f"{SHARED}/benchmarks/pretrained/{{backbone}}-{{version}}.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("prepare_backbone", 1500),
        disk_mb=ASKED.disk("prepare_backbone"),
        runtime=ASKED.minutes("prepare_backbone", 30),
    params:
        stage="fusion.stages.pretrained:prepare_backbone",
        code=code_hash("fusion.stages.pretrained"),
        settings=lambda w: pretrained_settings(w.backbone),
        sources=lambda w: pretrained_files(w.backbone),
    script:
        "../scripts/stage.py"


rule make_head:
    input:
        model=lambda w: pretrained(w.backbone),
        data=lambda w: data(w.task),
    output:
        head=f"{RUN}/heads/{{backbone}}/{{task}}.safetensors",
    log:
        f"{RUN}/logs/heads/{{backbone}}/{{task}}.log",
    benchmark:
        f"{RUN}/benchmarks/heads/{{backbone}}/{{task}}.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("make_head", 1500),
        disk_mb=ASKED.disk("make_head"),
        runtime=ASKED.minutes("make_head", 30, bundle=16),
        bundle=16,
    params:
        stage="fusion.stages.pretrained:make_head",
        code=code_hash("fusion.stages.pretrained"),
        settings=lambda w: {"backbone": backbone(w.backbone)},
    script:
        "../scripts/stage.py"
