"""Compile the train step for TPUs or GPUs that are not here: `python -m jax_impl.aot --topology h100:1x1x8`.

Of one chip it prints memory, operations, traffic and what bounds the step; of a GPU kernels and matrix products, too.
"""

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from jax_impl.aot.compile import AotOptions, compile_step
from jax_impl.aot.topologies import absent_devices
from twinstep.chips import chip_of
from twinstep.cli import parse_flags
from twinstep.errors import UserError, run_command
from twinstep.terminal import table_console


def main(argv: list[str]) -> int:
    options = parse_flags("python -m jax_impl.aot", AotOptions(), argv)
    devices = absent_devices(options.topology)
    chip = chip_of(devices[0].device_kind)
    if chip is None or not chip.memory:
        raise UserError(f"no figures are known for {devices[0].device_kind}; add it to CHIPS in twinstep/chips.py")
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
        flops, traffic = f"{found['flops']:.3e}", f"{found['memory_traffic_bytes'] / 1e9:.1f}"
        if found["xla"]["flops"] is not None:  # as for TPUs
            flops += f" (XLA counts {found['xla']['flops']:.3e})"
            traffic += f" (XLA counts {found['xla']['bytes_accessed'] / 1e9:.1f})"
        table.add_row("matrix products", f"{flops} FLOP")
        table.add_row("memory traffic", f"{traffic} GB")
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
    if "kernels" in found:
        show_gpu(table, found)
    table.add_row("compile time", f"{found['compile_seconds']:.0f} s")
    table_console(highlight=False).print(table)


def show_gpu(table: Table, found: dict[str, Any]) -> None:
    """The rows that only GPUs have, and what is not known below them."""
    sorts = dict(found["kernels"])
    table.add_row(
        "kernels launched", f"{sorts.pop('all'):,}: " + ", ".join(f"{n:,} {sort}" for sort, n in sorts.items())
    )
    for product in found["products"]:
        times = f"{product['times']:,}, {product['optimizer']:,} in the optimizer"
        table.add_row(f"products by {product['kind']}", f"{times}, of {product['operands']}")
    for buffer in found["large_buffers"]:
        table.add_row(buffer["what"], f"{buffer['times']} x {buffer['shape']}, {buffer['bytes'] / 1e6:.1f} MB each")
    if not found["large_buffers"]:
        table.add_row("arrays of T x T scores or all B x T x V logits", "none")
    table.caption = found["not_known"]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
