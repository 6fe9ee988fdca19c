rule make_init:
    input:
        model=lambda w: pretrained(w.backbone),
    output:
        init=directory(f"{RUN}/init/{{backbone}}/{{mode}}/seed{{seed}}"),
    log:
        f"{RUN}/logs/init/{{backbone}}/{{mode}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/init/{{backbone}}/{{mode}}/seed{{seed}}.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("make_init", 1500),
        disk_mb=ASKED.disk("make_init"),
        runtime=ASKED.minutes("make_init", 30),
    params:
        stage="fusion.stages.pretrained:make_init",
        code=code_hash("fusion.stages.pretrained"),
        settings=lambda w: {
            "backbone": backbone(w.backbone),
            "mode": PLAN.mode(w.backbone, w.mode),
            "seed": int(w.seed),
        },
    script:
        "../scripts/stage.py"


rule finetune_task:
    input:
        model=lambda w: pretrained(w.backbone),
        data=lambda w: data(w.task),
        pixels=lambda w: pixels(w.backbone, [w.task], "train"),
        heads=lambda w: head(w.backbone, w.task),
        init=init,
    output:
        model=directory(f"{RUN}/finetuned/{{backbone}}/{{mode}}/{{task}}/seed{{seed}}"),
    log:
        f"{RUN}/logs/finetuned/{{backbone}}/{{mode}}/{{task}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/finetuned/{{backbone}}/{{mode}}/{{task}}/seed{{seed}}.tsv"
    priority: 20  # the long ones first, so that no core waits at the end
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("finetune_task", 3000),
        disk_mb=ASKED.disk("finetune_task"),
        runtime=ASKED.minutes("finetune_task", 240, most=1440),
    params:
        stage="fusion.stages.finetune:finetune",
        code=code_hash("fusion.stages.finetune"),
        settings=lambda w: {
            "backbone": compiled_backbone(w.backbone),
            "mode": PLAN.mode(w.backbone, w.mode),
            "finetune": PLAN.config.finetune.settings(w.mode),
            "tasks": [w.task] if "task" in w.keys() else suite(w.suite),
            "seed": int(w.seed),
        },
    script:
        "../scripts/stage.py"


use rule finetune_task as finetune_multitask with:
    input:
        model=lambda w: pretrained(w.backbone),
        data=clean_data,
        pixels=lambda w: pixels(w.backbone, suite(w.suite), "train"),
        heads=suite_heads,
        init=init,
    output:
        model=directory(multitask("{backbone}", "{mode}", "{suite}", "{seed}")),
    log:
        f"{RUN}/logs/multitask/{{backbone}}/{{mode}}/{{suite}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/multitask/{{backbone}}/{{mode}}/{{suite}}/seed{{seed}}.tsv"
    priority: 30  # as long as all the others of its suite together
    resources:
        mem_mb=ASKED.memory("finetune_multitask", 4000),
        disk_mb=ASKED.disk("finetune_multitask"),
        runtime=ASKED.minutes("finetune_multitask", 1440, most=1440),


ruleorder: take_finetuned > finetune_task


rule take_finetuned:
    input:
        model=lambda w: pretrained(w.backbone),
        files=lambda w: source_files(checkpoint_files(w.backbone, w.mode, w.task)),
    output:
        model=directory(f"{RUN}/finetuned/{{backbone}}/{{mode}}/{{task}}/seed{{seed}}"),
    log:
        f"{RUN}/logs/finetuned/{{backbone}}/{{mode}}/{{task}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/finetuned/{{backbone}}/{{mode}}/{{task}}/seed{{seed}}.tsv"
    wildcard_constraints:
        backbone=taken_backbone(),
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("take_finetuned", 3000),
        disk_mb=ASKED.disk("take_finetuned"),
        runtime=ASKED.minutes("take_finetuned", 60),
    params:
        stage="fusion.stages.pretrained:take_finetuned",
        code=code_hash("fusion.stages.pretrained"),
        settings=lambda w: {
            "backbone": backbone(w.backbone),
            "source": PLAN.checkpoint(w.backbone, w.mode, w.task).model_dump(),
            "frozen": PLAN.rows.backbones[w.backbone].frozen,
        },
        sources=lambda w: checkpoint_files(w.backbone, w.mode, w.task),
    script:
        "../scripts/stage.py"


rule finetune:
    input:
        finetuned_models(),
