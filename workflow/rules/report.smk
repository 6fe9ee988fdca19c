rule report:
    input:
        tables=f"{RUN}/tables",
    output:
        report=report(f"{RUN}/report.html", caption="../report/report.rst", category="Report"),
        summary=f"{RUN}/summary.txt",
    log:
        f"{RUN}/logs/report.log",
    benchmark:
        f"{RUN}/benchmarks/report.tsv"
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=ASKED.memory("report", 1000),
        disk_mb=ASKED.disk("report"),
        runtime=ASKED.minutes("report", 30),
    params:
        stage="fusion.stages.report:make_report",
        code=code_hash("fusion.stages.report"),
        template=sha256(PACKAGE / "report" / "page.html.j2"),
        settings={"run": PLAN.config.run, "title": PLAN.config.title, "config": PLAN.config.model_dump(mode="json")},
    script:
        "../scripts/stage.py"
