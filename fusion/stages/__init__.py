"""The stages of the workflow: functions of a `fusion.job.Job`, and the only code that writes results."""
