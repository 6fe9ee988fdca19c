rule fuse:
    input:
        model=lambda w: pretrained(w.backbone),
        init=init,
        finetuned=suite_models,
        statistics=suite_statistics,
        data=suite_data,
        pixels=fused_pixels,
        heads=suite_heads,
    output:
        model=kept(directory(f"{RUN}/fused/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}")),
        selection=f"{RUN}/selection/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.parquet",
        diagnostics=f"{RUN}/diagnostics/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.parquet",
    log:
        f"{RUN}/logs/fused/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/fused/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.tsv"
    priority: 10  # the long ones first, so that no core waits at the end
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("fuse", 4000),
        disk_mb=ASKED.disk("fuse"),
        runtime=ASKED.minutes("fuse", 240, bundle=bundled),
        bundle=bundled,  # cluster jobs: so many short ones share one
    params:
        stage="fusion.stages.fuse:fuse",
        code=lambda w: code_hash("fusion.stages.fuse", *method_modules(w.method)),
        settings=lambda w: {
            "backbone": backbone(w.backbone),
            "tasks": suite(w.suite),
            "space": w.space,
            "algorithm": PLAN.rows.methods[w.method].algorithm,
            "grid": PLAN.rows.methods[w.method].grid(),
            "reason": PLAN.reason(w.mode, w.space, w.method),
            "labelled": PLAN.labelled(w.method),
            "adapt": PLAN.adapt(w.method),
            "select": PLAN.select(),
            "frozen": PLAN.rows.backbones[w.backbone].frozen,
            "seed": int(w.seed),
        },
    script:
        "../scripts/stage.py"
