"""What the stages need imported: read once by warm workers, so that no job waits for it."""

# ruff: noqa: F401
import numba
import transformers.models.bert.modeling_bert

import fusion.stages.analyse
import fusion.stages.corrupt
import fusion.stages.evaluate
import fusion.stages.finetune
import fusion.stages.fuse
import fusion.stages.merged_grams
import fusion.stages.pixels
import fusion.stages.prepare
import fusion.stages.pretrained
import fusion.stages.statistics
import fusion.stages.tables
