"""The sections of benchmarks/gpu.py, a file each. `rows(setup)` gives the name of what is measured, and how.

What a section alone needs is imported in its file, so that a package that is missing costs that section.
"""
