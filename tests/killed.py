"""A fine-tuning that is killed half way at the same point on any machine, by the process that runs it."""

# Python tells its audit hooks of every `os.replace` and `open` before it is done: signal 9 comes when the second
# checkpoint is about to be written, so that the first one is in its place and training is not over.
CODE = """
import os, signal, sys

def kill_before_second_checkpoint(event, arguments, kept=[]):
    if event == "os.rename" and str(arguments[1]).endswith(".resume.safetensors"):
        kept.append(arguments[1])
    if event == "open" and kept and ".resume.safetensors." in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_before_second_checkpoint)
"""
