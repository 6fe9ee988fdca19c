"""Writes docs/costs.md: what the demo and every preset will cost, as `fusion check` says it.

python docs/costs.py
"""

from collections.abc import Iterator
from pathlib import Path

from fusion.estimate.check import check
from fusion.plan import ROWS

PAGE = Path(__file__).with_suffix(".md")
ABOUT = """\
# What the presets cost

`fusion check CONFIG` says what a run will cost, before anything is downloaded; these are its tables. **All of this is
modelled**: no preset for a GPU has run at its true size, and the rates of the h100 are assumed. Those of the cpu are
measured.

Each stage's work is a function of the model's size, the number of tasks and examples (`fusion/estimate/stages.py`); the
rates of a machine turn it into seconds (`config/rates.yaml`; `--device`, `--rates FILE` of your own). The same figures,
with a margin, are what jobs ask a scheduler for. Where ≥ stands, something is unknown and left out; the lines below a
table name it, and the row of configuration to complete. `python docs/costs.py` writes this page."""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    configs = [ROWS / "config.yaml", *sorted((ROWS / "presets").glob("*.yaml"))]
    return "\n\n".join([ABOUT, *("\n".join(_section(path)) for path in configs)]) + "\n"


def _section(path: Path) -> Iterator[str]:
    yield f"## {path.relative_to(ROWS.parent)}\n"
    title, blank, *table = check(path, form="pipe")
    yield from (f"{title}.", blank, *table[: table.index("")], "")
    yield from (f"- {line}" for line in table[table.index("") + 1 :])


if __name__ == "__main__":
    main()
