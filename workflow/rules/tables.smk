rule tables:
    input:
        scores=expand(f"{RUN}/scores/{{path}}.parquet", path=evaluated()),
        predictions=expand(f"{RUN}/predictions/{{path}}.parquet", path=evaluated()),
        selection=expand(f"{RUN}/selection/{{path}}.parquet", path=fused(made=True)),
        diagnostics=expand(f"{RUN}/diagnostics/{{path}}.parquet", path=fused(made=True)),
        similarity=similarities(),
    output:
        tables=report(
            directory(f"{RUN}/tables"), caption="../report/tables.rst", patterns=["{name}.csv"], category="Tables"
        ),
    log:
        f"{RUN}/logs/tables.log",
    benchmark:
        f"{RUN}/benchmarks/tables.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("tables", 1500),
        disk_mb=ASKED.disk("tables"),
        runtime=ASKED.minutes("tables", 30),
    params:
        stage="fusion.stages.tables:make_tables",
        code=code_hash("fusion.stages.tables"),
        published=PUBLISHED,
        subsets=PLAN.subsets,
        modelled=lambda w: by_stage(ASKED.jobs),
        benchmarks=f"{RUN}/benchmarks",
    script:
        "../scripts/stage.py"
