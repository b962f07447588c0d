"""The command line: `python -m parity check|compare|record|faults|shapes|convert`.

`check` takes the trainers' flags beside its own: what argparse doesn't know goes to `parity.check_configs.with_flags`.
"""

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, get_args

from parity.request import Platform
from twinstep.config import MODELS
from twinstep.errors import UserError
from twinstep.extras import needs

ALL = "all"  # in place of a model's name


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for bad input. Always raises UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: list[str]) -> int:
    """Exit code: 0 all agrees, 1 something does not, 2 bad input (by `twinstep.errors.run_command`)."""
    parser = make_parser()
    args, flags = parser.parse_known_args(argv)
    args.flags = flags
    if args.flags and args.run is not run_check:
        parser.error(f"unrecognized arguments: {' '.join(args.flags)}")
    if needs_torch(args):
        needs("torch", "parity")
    return args.run(args)


def needs_torch(args: argparse.Namespace) -> bool:
    """Recordings are compared without torch, and those of JAX's side made without it."""
    if args.run is run_compare:
        return len(args.pair) == 1
    return args.run is not run_record or args.side == "torch"


def make_parser() -> Parser:
    """The commands with their flags; each sets `run` to its function below, which imports what it needs only then."""
    parser = Parser(prog="python -m parity", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    check = commands.add_parser(
        "check",
        help="compare the two implementations of a model, stage by stage",
        usage="python -m parity check [MODEL|all] [OPTIONS] [FLAGS OF THE TRAINER]",
        description=f"MODEL is one of {', '.join(MODELS)}, gpt when left out; all: every configuration that "
        "parity/check_all.py lists, which together run each line of the arithmetic. Flags of the trainer change what "
        "is checked, and `python -m jax_impl.train MODEL --help` explains them: --dtype (here float64 when left out), "
        "--steps (10), --seed, --sequence-len, --optimizer, --accumulation, --parallel and so on.",
        allow_abbrev=False,
    )
    check.add_argument(
        "--platform",
        choices=get_args(Platform),
        default="cpu",
        help="where JAX runs (default cpu); torch runs on the GPU beside it for cuda if it sees one, else on the CPU",
    )
    check.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="devices for the JAX step (default 1): CPU devices are made, of others it must be 1 or all there are",
    )
    check.add_argument(
        "--run",
        dest="source",
        metavar="DIR",
        help="start from this run: its configuration, cut to a small batch, and its weights; or any folder that "
        "convert reads (then MODEL is its own)",
    )
    check.add_argument("--out-dir", metavar="DIR", help="folder for the reports (default parity-report)")
    check.set_defaults(run=run_check)

    compare = commands.add_parser(
        "compare",
        help="compare any torch module with any JAX port of it, or two recordings",
        usage="python -m parity compare FILE.py | DIR DIR [--dtype DTYPE] [--out-dir DIR]",
        description="FILE.py has torch_side() -> (module, inputs) and jax_side(state_dict) -> (function, params): "
        "function(params, *inputs) is the port; and perhaps OPTIONS, a dict of parity.compare's other arguments. "
        "Two DIRs are recordings of `python -m parity record`: of torch's side and of JAX's, or of one side twice. "
        "Exit code 0 if all agrees, 1 if not, 2 for bad input.",
    )
    compare.add_argument("pair", type=Path, nargs="+", metavar="FILE.py | DIR DIR", help="the pair, or two recordings")
    compare.add_argument(
        "--dtype", metavar="DTYPE", help="float64 (default), float32 or bfloat16: the last two run both as written"
    )
    compare.add_argument("--out-dir", metavar="DIR", help="folder for the reports (default parity-report)")
    compare.set_defaults(run=run_compare)

    record = commands.add_parser(
        "record",
        help="record one side of a pair, to compare it on another machine or with another version",
        description="FILE.py is that of `compare`, with torch imported in torch_side: the JAX side is recorded without "
        "it, from the weights and inputs of a recording of torch's side. The folder holds JSON and safetensors. Then: "
        "python -m parity compare DIR DIR. Exit code 0, or 2 for bad input.",
    )
    record.add_argument("file", type=Path, metavar="FILE.py", help="the pair")
    record.add_argument("--side", choices=("torch", "jax"), required=True, help="which of the two functions is run")
    record.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="a recording of torch's side, from whose weights and inputs to start; the JAX side needs one, torch's "
        "starts from its own when left out",
    )
    record.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    record.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="float64 (default), float32 or bfloat16: the last two run as written; the same on both sides",
    )
    record.add_argument(
        "--platform",
        choices=get_args(Platform),
        help="where this side runs (default cpu); torch runs on the GPU for cuda if it sees one, else on the CPU",
    )
    record.set_defaults(run=run_record)

    faults = commands.add_parser("faults", help="inject known porting faults one by one and see where each is caught")
    faults.add_argument("--model", choices=tuple(MODELS), help="only the faults of one model (default all)")
    faults.add_argument("--only", metavar="NAME", help="only one fault")
    faults.add_argument("--out-dir", metavar="DIR", help="folder for the reports (default parity-report)")
    faults.set_defaults(run=run_faults)

    shapes = commands.add_parser("shapes", help="the flow of shapes through both frameworks, from batch to loss")
    shapes.add_argument(
        "model", nargs="?", default="gpt", metavar="MODEL", help=f"one of {', '.join(MODELS)}; gpt when left out"
    )
    shapes.set_defaults(run=run_shapes)

    convert = commands.add_parser("convert", help="a run or a checkpoint of one format into another")
    convert.add_argument("source", metavar="SOURCE_DIR")
    convert.add_argument("out", metavar="OUT_DIR", help="a new or empty folder")
    convert.add_argument("--from", dest="from_format", metavar="FORMAT", help="jax, torch, safetensors, hf or nanochat")
    convert.add_argument("--to", dest="to_format", metavar="FORMAT", help="the other framework when left out")
    convert.add_argument("--step", type=int, metavar="N", help="the checkpoint to take (default the newest)")
    convert.set_defaults(run=run_convert)
    return parser


def run_check(args: argparse.Namespace) -> int:
    """`check`: 0 if all agrees, else 1. Writes the reports. Raises UserError for a configuration that cannot run."""
    from parity.check import SEEDS, check
    from parity.check_all import check_all
    from parity.check_configs import subject, with_flags
    from parity.environment import use_one_thread
    from parity.own_weights import trained_subject
    from parity.platforms import stay_on_cpu
    from parity.report import print_report, write_report
    from parity.report.folder import open_folder
    from parity.request import Request
    from twinstep.terminal import table_console

    if args.devices < 1:
        raise UserError(f"--devices is {args.devices}; it must be at least 1")
    stay_on_cpu()
    named = args.flags[:1] and not args.flags[0].startswith("-")
    model, flags = (args.flags[0], args.flags[1:]) if named else (None, args.flags)
    if model == ALL:
        if flags or args.devices > 1 or args.platform != "cpu" or args.source is not None:
            raise UserError("check all has its own configurations; pass no more than --out-dir")
        use_one_thread()
        return check_all(open_folder(args.out_dir))
    if args.source is None:
        config = with_flags(subject(model or "gpt"), flags)
    else:
        config = with_flags(trained_subject(Path(args.source), model), flags)
    folder = open_folder(args.out_dir)
    if args.source is None:
        use_one_thread()
    seeds = 1 if config.train.dtype == "float64" else SEEDS
    request = Request(config, seeds, args.devices, checkpoint=args.source, platform=args.platform)
    result = check(replace(request, generation=True, nudge=True))
    command = ["python", "-m", "parity", "check", result.model, *flags]
    command += ["--devices", str(args.devices)] if args.devices > 1 else []
    command += [] if args.platform == "cpu" else ["--platform", args.platform]
    command += [] if args.source is None else ["--run", args.source]
    result = replace(result, command=shlex.join(command))
    print_report(result, table_console(), write_report(result, folder))
    return 0 if result.verdict == "agrees" else 1


def run_compare(args: argparse.Namespace) -> int:
    """`compare`: 0 if all agrees, else 1. Writes the reports. Raises UserError for a pair that cannot be compared."""
    from parity.pair.file import compare_file
    from parity.platforms import stay_on_cpu
    from parity.record.compare import compare_folders
    from parity.report import print_report
    from parity.report.folder import open_folder
    from twinstep.terminal import table_console

    if len(args.pair) > 2 or (len(args.pair) == 1 and args.pair[0].is_dir()):
        raise UserError("pass one FILE.py, or two folders that `python -m parity record` wrote")
    if len(args.pair) == 2 and args.dtype:
        raise UserError("two recordings are compared as they were made; pass --dtype to `python -m parity record`")
    stay_on_cpu()
    result = compare_folders(*args.pair) if len(args.pair) == 2 else compare_file(args.pair[0], args.dtype)
    flags = ["--dtype", args.dtype] if args.dtype else []
    result = replace(result, command=shlex.join(["python", "-m", "parity", "compare", *map(str, args.pair), *flags]))
    print_report(result, table_console(), result.write(open_folder(args.out_dir)))
    return 0 if result.verdict == "agrees" else 1


def run_record(args: argparse.Namespace) -> int:
    """`record`: 0; raises UserError for all that cannot be recorded."""
    from parity.platforms import stay_on_cpu
    from parity.record.command import record

    if args.platform in (None, "cpu"):
        stay_on_cpu()
    record(args.file, args.side, args.weights, args.out, args.dtype, args.platform)
    print(f"wrote {args.out}")
    return 0


def run_faults(args: argparse.Namespace) -> int:
    """`faults`: 0 if each fault is found where it belongs, else 1."""
    from parity.faults.names import check_names

    check_names(args.model, args.only)  # before jax and torch are loaded, which takes seconds
    from parity.environment import use_one_thread
    from parity.faults.run import run_catalogue
    from parity.platforms import stay_on_cpu
    from parity.report.folder import open_folder

    stay_on_cpu()
    use_one_thread()
    return run_catalogue(args.model, args.only, open_folder(args.out_dir))


def run_shapes(args: argparse.Namespace) -> int:
    """`shapes`: 0 if all shapes are the same, else 1."""
    from parity.shapes import print_shapes

    return print_shapes(args.model)


def run_convert(args: argparse.Namespace) -> int:
    """`convert`: 0; raises UserError for all that cannot be converted."""
    from parity.convert import convert

    convert(Path(args.source), Path(args.out), args.from_format, args.to_format, args.step)
    print(f"wrote {args.out}")
    return 0
