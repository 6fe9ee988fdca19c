rule statistics:
    input:
        model=lambda w: pretrained(w.backbone),
        init=init,
        finetuned=lambda w: finetuned(w.backbone, w.mode, w.task, w.seed),
        data=lambda w: data(w.task),
        pixels=lambda w: pixels(w.backbone, [w.task], "train"),
        head=lambda w: head(w.backbone, w.task),
    output:
        statistics=f"{RUN}/statistics/{{statistic}}/{{backbone}}/{{mode}}/{{space}}/{{task}}/seed{{seed}}.safetensors",
    log:
        f"{RUN}/logs/statistics/{{statistic}}/{{backbone}}/{{mode}}/{{space}}/{{task}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/statistics/{{statistic}}/{{backbone}}/{{mode}}/{{space}}/{{task}}/seed{{seed}}.tsv"
    wildcard_constraints:
        statistic="fisher|gram",
    priority: 15  # what long fusing jobs wait for
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("statistics", 3000),
        disk_mb=ASKED.disk("statistics"),
        runtime=ASKED.minutes("statistics", 120, bundle=4),
        bundle=4,
    params:
        stage="fusion.stages.statistics:statistics",
        code=code_hash("fusion.stages.statistics"),
        settings=lambda w: {
            "backbone": backbone(w.backbone),
            "space": w.space,
            "frozen": PLAN.rows.backbones[w.backbone].frozen,
            "statistic": w.statistic,
            "examples": PLAN.config.fuse.statistics_examples,
            **(
                {"labels": PLAN.config.fuse.fisher_labels, "seed": int(w.seed)}
                if w.statistic == "fisher"
                else {"batch_size": PLAN.config.evaluate.batch_size}
            ),
        },
    script:
        "../scripts/stage.py"


rule merged_grams:
    input:
        model=lambda w: pretrained(w.backbone),
        init=init,
        finetuned=suite_models,
        data=clean_data,
        pixels=lambda w: pixels(w.backbone, suite(w.suite), "train"),
    output:
        statistics=kept(
            f"{RUN}/statistics/merged_gram/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{off_diagonal}}/seed{{seed}}.safetensors"
        ),
    log:
        f"{RUN}/logs/statistics/merged_gram/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{off_diagonal}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/statistics/merged_gram/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{off_diagonal}}/seed{{seed}}.tsv"
    priority: 15
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("merged_grams", 4000),
        disk_mb=ASKED.disk("merged_grams"),
        runtime=ASKED.minutes("merged_grams", 240),
    params:
        stage="fusion.stages.merged_grams:merged_grams",
        code=code_hash("fusion.stages.merged_grams"),
        settings=lambda w: {
            "backbone": backbone(w.backbone),
            "space": w.space,
            "frozen": PLAN.rows.backbones[w.backbone].frozen,
            "tasks": suite(w.suite),
            "off_diagonal": float(w.off_diagonal),
            "examples": PLAN.config.fuse.statistics_examples,
            "batch_size": PLAN.config.evaluate.batch_size,
        },
    script:
        "../scripts/stage.py"
