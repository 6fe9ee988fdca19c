rule prepare_pixels:
    input:
        model=f"{SHARED}/pretrained/{{backbone}}-{{weights}}",
        data=f"{SHARED}/data/{{data}}",
        pixels=pixels_before,
    output:
        pixels=directory(f"{SHARED}/pixels/{{data}}/{{backbone}}-{{weights}}/{{split}}"),
    log:
        f"{SHARED}/logs/pixels/{{data}}/{{backbone}}-{{weights}}/{{split}}.log",
    benchmark:
        f"{SHARED}/benchmarks/pixels/{{data}}/{{backbone}}-{{weights}}/{{split}}.tsv"
    wildcard_constraints:
        data="[^/]+",
        weights="[0-9a-f]{8}",
        split="train|val|test",
    priority: 50  # what others wait for
    conda:
        "../envs/stage.yml"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: ASKED.memory("prepare_pixels", 1500)(reckoned(w), attempt),
        disk_mb=lambda w: ASKED.disk("prepare_pixels")(reckoned(w)),
        runtime=lambda w: ASKED.minutes("prepare_pixels", 120, most=480)(reckoned(w)),
    params:
        stage="fusion.stages.pixels:prepare_pixels",
        code=code_hash("fusion.stages.pixels"),
        settings=lambda w: {
            "split": w.split,
            "examples": pictures(w),
            "image_size": backbone(w.backbone)["options"].get("image_size"),
        },
    script:
        "../scripts/stage.py"
