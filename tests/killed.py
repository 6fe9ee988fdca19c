"""A fine-tuning that is killed half way at the same point on any machine, by the process that runs it."""

# Python tells its audit hooks of every `os.replace` before it is done. The second checkpoint is written and not yet in
# its place when signal 9 comes, so that the first is there, and training is not over.
CODE = """
import os, signal, sys

def kill_at_second_checkpoint(event, arguments):
    if event == "os.rename":
        path = os.fspath(arguments[1])
        if str(path).endswith(".resume.safetensors") and os.path.exists(path):
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at_second_checkpoint)
"""
