rule report:
    input:
        tables=f"{RUN}/tables",
    output:
        report=report(f"{RUN}/report.html", caption="../report/report.rst", category="Report"),
        summary=f"{RUN}/summary.md",
    log:
        f"{RUN}/logs/report.log",
    benchmark:
        f"{RUN}/benchmarks/report.tsv"
    params:
        stage="fusion.stages.report:make_report",
        code="x",
        settings={"run": PLAN.config.run, "title": PLAN.config.title, "config": PLAN.config.model_dump()},
    conda:
        "../../environment.yml"
    script:
        "../scripts/stage.py"
