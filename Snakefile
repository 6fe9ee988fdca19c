# a configuration stands by itself: one named by --configfile takes nothing from the demo's
if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pictures.smk"
include: "workflow/rules/pixels.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/fuse.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/check.smk"


onstart:
    hold_free_for_any(workflow)
    for line in said_of_sources():
        logger.info(line)


localrules:  # what takes seconds, and what needs the network: cluster jobs run without one
    all,
    check,
    finetune,
    fetch_archive,
    prepare_task,
    prepare_backbone,
    take_finetuned,
    tables,
    report,


rule all:
    default_target: True
    input:
        rules.report.output,
