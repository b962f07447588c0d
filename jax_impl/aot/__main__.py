"""Compile the train step for TPUs that are not here: `python -m jax_impl.aot --topology v5e:4x4 --depth 20`.

Of one chip it prints memory, operations, traffic and what bounds the step.
"""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from jax_impl.aot.chips import chip_of
from jax_impl.aot.compile import AotOptions, absent_devices, compile_step, export_for_cuda, make_config
from twinstep.cli import parse_flags
from twinstep.errors import UserError, run_command
from twinstep.terminal import table_console


def main(argv: list[str]) -> int:
    options = parse_flags("python -m jax_impl.aot", AotOptions(), argv)
    if options.topology == "cuda":
        size = export_for_cuda(make_config(options, 1))
        print(f"exported for one CUDA GPU: {size:,} bytes of StableHLO, attention by XLA; nothing was compiled or run")
        return 0
    devices = absent_devices(options.topology)
    chip = chip_of(devices[0].device_kind)
    if chip is None or not chip.memory:
        raise UserError(f"no figures are known for {devices[0].device_kind}; add it to CHIPS in jax_impl/aot/chips.py")
    found = compile_step(options, devices, chip)
    show(found)
    if options.json is not None:
        try:
            Path(options.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {options.json}: {error.strerror}; pass another --json") from error
    return 0


def show(found: dict[str, Any]) -> None:
    """The table for people."""
    table = Table("per chip and step", "", title=f"{found['topology']}, depth {found['depth']}, {found['parallel']}")
    gib = 2**30
    table.add_row("parameters", f"{found['parameter_bytes'] / gib:.3f} GiB")
    table.add_row("optimizer state", f"{found['optimizer_state_bytes'] / gib:.3f} GiB")
    if "activation_bytes" in found:
        table.add_row("activations and temporaries", f"{found['activation_bytes'] / gib:.3f} GiB")
    table.add_row("peak", f"{found['peak_bytes'] / gib:.2f} of {found['chip_memory_bytes'] / gib:.0f} GiB")
    table.add_row("fits", "yes" if found["fits"] else "no: lower --batch-per-chip")
    if "roofline" in found:
        bound = found["roofline"]
        table.add_row("matrix products (XLA's count)", f"{found['flops']:.3e} ({found['xla']['flops']:.3e}) FLOP")
        traffic = f"{found['memory_traffic_bytes'] / 1e9:.1f} ({found['xla']['bytes_accessed'] / 1e9:.1f}) GB"
        table.add_row("memory traffic (XLA's count)", traffic)
        for exchange in found["collectives"]:
            largest = f"largest {exchange['largest'] / 1e6:.2f} MB"
            table.add_row(exchange["kind"], f"{exchange['times']} x, {exchange['bytes'] / 1e9:.3f} GB, {largest}")
        optimizer = sum(exchange["bytes"] for exchange in found["optimizer_collectives"])
        share = optimizer / (4 * found["parameters"])
        table.add_row("of that by the optimizer", f"{optimizer / 1e9:.3f} GB, {share:.3f} x all parameters' bytes")
        for name in ("compute", "memory", "network"):
            table.add_row(f"at least, by {name}", f"{1e3 * bound[f'{name}_seconds']:.1f} ms")
        table.add_row("roofline: step", f"{1e3 * bound['step_seconds']:.1f} ms, bound by {bound['bound_by']}")
        # Upstream's count of operations, and so MFU, takes attention as if nothing were masked: over 100% is possible.
        table.add_row("roofline: efficiency, MFU", f"{bound['efficiency']:.1%}, {bound['mfu']:.1%} as upstream counts")
    table.add_row("compile time", f"{found['compile_seconds']:.0f} s")
    table_console(highlight=False).print(table)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
