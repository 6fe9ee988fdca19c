rule similarity:
    input:
        model=lambda w: pretrained(w.backbone),
        init=init,
        finetuned=suite_models,
    output:
        similarity=f"{RUN}/similarity/{{backbone}}/{{mode}}/{{space}}/{{suite}}/seed{{seed}}.parquet",
    log:
        f"{RUN}/logs/similarity/{{backbone}}/{{mode}}/{{space}}/{{suite}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/similarity/{{backbone}}/{{mode}}/{{space}}/{{suite}}/seed{{seed}}.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("similarity", 1500),
        disk_mb=ASKED.disk("similarity"),
        runtime=ASKED.minutes("similarity", 30, bundle=16),
        bundle=16,
    params:
        stage="fusion.stages.analyse:similarity",
        code=code_hash("fusion.stages.analyse"),
        settings=lambda w: {
            "space": w.space,
            "tasks": suite(w.suite),
            "frozen": PLAN.rows.backbones[w.backbone].frozen,
        },
    script:
        "../scripts/stage.py"
