"""A benchmark suite for multi-task model fusion."""
