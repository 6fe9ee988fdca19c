rule evaluate_pretrained:
    input:
        model=lambda w: pretrained(w.backbone),
        data=tested_data,
        pixels=tested_pixels,
        heads=tested_heads,
    output:
        scores=f"{RUN}/scores/{{backbone}}/pretrained/{{suite}}.parquet",
        predictions=f"{RUN}/predictions/{{backbone}}/pretrained/{{suite}}.parquet",
    log:
        f"{RUN}/logs/scores/{{backbone}}/pretrained/{{suite}}.log",
    benchmark:
        f"{RUN}/benchmarks/scores/{{backbone}}/pretrained/{{suite}}.tsv"
    priority: 40  # before fine-tuning: where a task is read wrongly, it shows here first
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("evaluate_pretrained", 2500),
        disk_mb=ASKED.disk("evaluate_pretrained"),
        runtime=ASKED.minutes("evaluate_pretrained", 60, bundle=16),
        bundle=16,
    params:
        stage="fusion.stages.evaluate:evaluate",
        code=code_hash("fusion.stages.evaluate"),
        settings=evaluation("pretrained", "reference"),
    script:
        "../scripts/stage.py"


use rule evaluate_pretrained as evaluate_individual with:
    input:
        model=lambda w: pretrained(w.backbone),
        evaluated=lambda w: finetuned(w.backbone, w.mode, w.task, w.seed),
        data=tested_data,
        pixels=lambda w: tested_pixels(w) + pixels(w.backbone, [w.task], "val"),
        heads=tested_heads,
    output:
        scores=f"{RUN}/scores/{{backbone}}/{{mode}}/individual/{{suite}}/{{task}}/seed{{seed}}.parquet",
        predictions=f"{RUN}/predictions/{{backbone}}/{{mode}}/individual/{{suite}}/{{task}}/seed{{seed}}.parquet",
    log:
        f"{RUN}/logs/scores/{{backbone}}/{{mode}}/individual/{{suite}}/{{task}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/scores/{{backbone}}/{{mode}}/individual/{{suite}}/{{task}}/seed{{seed}}.tsv"
    priority: 0
    params:
        stage="fusion.stages.evaluate:evaluate",
        code=code_hash("fusion.stages.evaluate"),
        settings=evaluation("individual", "reference"),


use rule evaluate_pretrained as evaluate_multitask with:
    input:
        model=lambda w: pretrained(w.backbone),
        evaluated=lambda w: multitask(w.backbone, w.mode, PLAN.trained_in(w.suite), w.seed),
        data=tested_data,
        pixels=tested_pixels,
        heads=tested_heads,
    output:
        scores=f"{RUN}/scores/{{backbone}}/{{mode}}/multitask/{{suite}}/seed{{seed}}.parquet",
        predictions=f"{RUN}/predictions/{{backbone}}/{{mode}}/multitask/{{suite}}/seed{{seed}}.parquet",
    log:
        f"{RUN}/logs/scores/{{backbone}}/{{mode}}/multitask/{{suite}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/scores/{{backbone}}/{{mode}}/multitask/{{suite}}/seed{{seed}}.tsv"
    priority: 0
    params:
        stage="fusion.stages.evaluate:evaluate",
        code=code_hash("fusion.stages.evaluate"),
        settings=evaluation("multitask", "reference"),


use rule evaluate_pretrained as evaluate_fused with:
    input:
        model=lambda w: pretrained(w.backbone),
        evaluated=fused_model,
        data=tested_data,
        pixels=tested_pixels,
        heads=tested_heads,
    output:
        scores=f"{RUN}/scores/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.parquet",
        predictions=f"{RUN}/predictions/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.parquet",
    log:
        f"{RUN}/logs/scores/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.log",
    benchmark:
        f"{RUN}/benchmarks/scores/{{backbone}}/{{mode}}/{{space}}/{{suite}}/{{method}}/seed{{seed}}.tsv"
    priority: 0
    params:
        stage="fusion.stages.evaluate:evaluate",
        code=code_hash("fusion.stages.evaluate"),
        settings=evaluation(None, None),
