rule check_node:
    output:
        facts=temp(f"{SHARED}/check/node.json"),
    log:
        f"{SHARED}/logs/check/node.log",
    conda:
        "../envs/stage.yml"
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        stage="fusion.stages.check:check_node",
    script:
        "../scripts/stage.py"


rule check:
    input:
        facts=rules.check_node.output.facts,
    log:
        f"{SHARED}/logs/check/shown.log",
    conda:
        "../envs/stage.yml"
    params:
        stage="fusion.stages.check:show",
    script:
        "../scripts/stage.py"
