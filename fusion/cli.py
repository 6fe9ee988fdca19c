"""The program `fusion`: the algorithms on any checkpoints, without Snakemake.

    fusion merge METHOD --pretrained P --finetuned A B C --out OUT
    fusion methods [NAME]
    fusion check CONFIG
    fusion show CHECKPOINT …

Exit codes: 0 done, 1 failed, 2 wrong use. torch is imported only when models are read.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fusion.stopping import Stopping

MERGE = """\
Merges fine-tuned models into the pre-trained one. P, A, B … are a .safetensors file, a folder in transformers format
(sharded or not), or, but for P, a PEFT (LoRA) adapter folder; full models and adapters can be mixed. OUT ending in
.safetensors is one file with its card beside it (OUT's name with .md); otherwise a folder that from_pretrained loads,
with the small files of P and of its sub-folders; those over 100 MB are left out, and named.
Methods that make one model a task write one sub-folder a model: 0_A, 1_B, …
With --heads keep, models may differ in their heads, and in a prefix of their names such as "bert.": the body that all
have is merged, under P's names, and what is A's alone is written as it is to OUT/heads/0_A.safetensors.
What is odd is said as a warning, before the merge and in the card: a model far from P, a config.json that differs from
P's in what matters, an adapter of another base, a method of matrices on a model that has few.
The SHA-256 of every input is written into the card, which takes about a second per 3 GB beside the merge."""
METHOD = "an algorithm, several joined by + as in dare+ties, or a row of config/methods.yaml"
DEVICE = "where to merge (default: auto, a GPU if there is one); a method that draws draws otherwise on each"


class WrongUse(ValueError):
    """What was asked for cannot be meant; nothing was begun."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise WrongUse(f"{message} (see '{self.prog} --help')")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the program with these arguments."""
    try:
        arguments = parser().parse_args(argv)
        arguments.argv = ["fusion", *(sys.argv[1:] if argv is None else argv)]
        arguments.run(arguments)
        sys.stdout.flush()
    except SystemExit as done:  # --help, --version
        return int(done.code or 0)
    except WrongUse as error:
        return _failed(error, 2)
    except BrokenPipeError:  # of `fusion show … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _failed("interrupted; nothing was written", 1)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return _failed(error, 1)
    return 0


def parser() -> Parser:
    """The arguments of the program."""
    whole = Parser(prog="fusion", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="command")
    one = commands.add_parser("merge", help="merge models", description=MERGE, formatter_class=whole.formatter_class)
    one.add_argument("method", metavar="METHOD", help=METHOD)
    one.add_argument("--pretrained", required=True, type=Path, metavar="P", help="the model before fine-tuning")
    one.add_argument("--finetuned", required=True, type=Path, nargs="+", metavar="A", help="the models to merge")
    one.add_argument("--out", required=True, type=Path, metavar="OUT", help="what to write; it must not exist")
    one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a hyper-parameter, repeatable")
    one.add_argument("--seed", type=_seed, default=0, help="of methods that draw (default: 0)")
    one.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], help="of the merged model (default: that of P)")
    one.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of one file of a folder (default: 5GB)")
    one.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help=DEVICE)
    one.add_argument("--quiet", action="store_true", help="no progress on stderr")
    one.add_argument("--strict", action="store_true", help="what is odd about the models is an error, no warning")
    one.add_argument("--heads", choices=["keep"], help="merge what all models have; the rest goes to OUT/heads")
    one.set_defaults(run=_merge)
    one = commands.add_parser("methods", help="the algorithms, their hyper-parameters and papers")
    one.add_argument("method", metavar="NAME", nargs="?", help=f"{METHOD}: all about it")
    one.set_defaults(run=_methods)
    one = commands.add_parser("check", help="what a run of the workflow will cost, before it runs")
    one.add_argument("config", metavar="CONFIG", type=Path, help="its configuration file")
    one.add_argument("--device", metavar="NAME", help="a row of the rates (default: what the configuration names)")
    one.add_argument("--rates", metavar="FILE", type=Path, help="rates of machines (default: config/rates.yaml)")
    one.add_argument("--markdown", action="store_true", help="the table as Markdown")
    one.set_defaults(run=_check)
    one = commands.add_parser("show", help="tensors, types, shapes, norms; of two checkpoints: what differs")
    one.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", type=Path, help="compared with the first, if many")
    one.set_defaults(run=_show)
    return whole


def _seed(text: str) -> int:
    """A seed that torch takes."""
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 0 to 2**63 - 1")
    return int(text)


def _merge(arguments: argparse.Namespace) -> None:
    from fusion.catalogue import recipe
    from fusion.folder import parse_size

    try:
        found, shard_bytes = recipe(arguments.method, arguments.set), parse_size(arguments.max_shard_size)
    except ValueError as error:
        raise WrongUse(error) from error
    _require_present([arguments.pretrained, *arguments.finetuned])
    _require_absent(arguments.out, found.pipeline)
    if arguments.heads and arguments.out.suffix == ".safetensors":
        raise WrongUse(f"--heads keep writes more than one file; expected --out to be a folder, got {arguments.out}")
    with Stopping() as stopping:
        from fusion.merging import Order, run

        given = ("pretrained", "finetuned", "out", "seed", "device", "dtype", "quiet", "strict", "heads")
        chosen = {name: getattr(arguments, name) for name in given}
        run(Order(recipe=found, shard_bytes=shard_bytes, command=arguments.argv, **chosen), stopping)
    if not arguments.quiet:
        hint = "" if arguments.pretrained.is_dir() or arguments.out.suffix else " (P is a file: weights and card only)"
        print(f"{arguments.out}: {found.pipeline} of {len(arguments.finetuned)} models{hint}", file=sys.stderr)


def _methods(arguments: argparse.Namespace) -> None:
    from fusion.catalogue import page, table

    try:
        print(page(arguments.method) if arguments.method else table())
    except ValueError as error:
        raise WrongUse(error) from error


def _check(arguments: argparse.Namespace) -> None:
    from fusion.estimate.check import check

    for path in filter(None, (arguments.config, arguments.rates)):
        if not path.is_file():
            raise WrongUse(f"{path} does not exist; expected a file of configuration")
    given = {"file": arguments.rates} if arguments.rates else {}
    for line in check(arguments.config, arguments.device, form="pipe" if arguments.markdown else "simple", **given):
        print(line)


def _show(arguments: argparse.Namespace) -> None:
    _require_present(arguments.checkpoints)
    from fusion.show import show

    for line in show(arguments.checkpoints):
        print(line)


def _require_present(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise WrongUse(f"{path} does not exist; expected a .safetensors file or a model folder{_download(path)}")


def _download(path: Path) -> str:
    """What to do where the path may be meant as a model's name on the hub: 'gpt2', 'org/name'."""
    is_name = re.fullmatch(r"([\w.-]+/)?\w[\w.-]*", str(path)) and path.suffix != ".safetensors"
    if not is_name or (path.parent != Path() and path.parent.exists()):
        return ""
    return f"; nothing is downloaded: for a model on the hub, run hf download {path} --local-dir FOLDER and give FOLDER"


def _require_absent(out: Path, pipeline: str) -> None:
    """WrongUse where OUT would replace something, or cannot hold what the method makes."""
    from fusion.pipelines import method_class

    is_file = out.suffix == ".safetensors"
    if is_file and method_class(pipeline) == "multi-model":
        raise WrongUse(f"{pipeline} makes one model a task; expected --out to be a folder, got {out}")
    for path in (out, out.with_suffix(".md")) if is_file else (out,):
        if path.exists() or path.is_symlink():
            raise WrongUse(f"--out: {path} exists; remove it or choose another name")


def _failed(error: object, code: int) -> int:
    print(f"fusion: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
