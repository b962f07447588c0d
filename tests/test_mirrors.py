"""The two implementations mirror each other: same files, same names, same order. What has no twin is listed here.

Functions and classes are compared, constants and aliases are not.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Files that only jax_impl has, and why. torch_ref has none that jax_impl lacks.
JAX_FILES = {
    "aot/__init__.py": "the package",
    "aot/__main__.py": "the command",
    "aot/chips.py": "the table of accelerators that aot and MFU look up",
    "aot/compile.py": "compiling for a machine that is not there is XLA's",
    "aot/hlo.py": "reading of XLA's compiled programs",
    "aot/roofline.py": "what a program of XLA's is bound by",
    "checksum.py": "arrays on several devices have a checksum each; torch_ref's files have a SHA-256 each",
    "cpu.py": "settings of XLA and the allocator for CPUs; torch_ref runs torch with its defaults",
    "fsdp.py": "dividing parameters among devices; torch_ref shows data parallel only",
    "head_loss.py": "large logits in pieces without a copy in float32; torch_ref makes them whole, as torch users do",
    "models/splash.py": "JAX's Pallas attention kernel for TPUs; torch has scaled_dot_product_attention",
    "plot.py": "one command draws the runs of both",
    "tree.py": "nested dicts and flat names; a torch module holds its arrays under their names",
    "processes.py": "jax.distributed; torch_ref has torchrun, and parallel.py for what is left",
}

# Names without a twin: for each file those of jax_impl, those of torch_ref, and why.
WITHOUT_TWIN: dict[str, tuple[set[str], set[str], str]] = {
    "checkpoint.py": (
        {
            *("open_manager", "finish", "read_items", "attempt", "name_arrays"),
        },
        {"training_tensors", "load_training_tensors", "read_file"},
        "orbax saves beside training, from arrays on several devices: a manager, and a checksum for each array; "
        "safetensors are files of their own, with a hash each",
    ),
    "input.py": (set(), {"to_tensors"}, "JAX takes NumPy arrays as they are"),
    "models/__init__.py": (
        {"Model", "load_tree"},
        {"weight_shapes", "load_weights"},
        "a torch module holds its arrays under their names; JAX has a structure and a tree apart",
    ),
    "models/attention.py": (
        {"cached_attention"},
        set(),
        "behind a cache XLA needs one shape for every length, and its heads first; torch cuts the cache to its length",
    ),
    "models/mlp.py": (
        set(),
        {"AllSum", "Dropout"},
        "nnx.BatchNorm sums over devices by itself, and its dropout takes a key instead of a mask",
    ),
    "muon.py": (
        {"on_every_device", "by_stacks", "MuonState", "orthogonalize_tree", "muon"},
        {"Muon"},
        "a gradient transformation is a state and two functions, an optimizer of torch is a class",
    ),
    "optimizer.py": (
        {"make_optimizer", "make_transform"},
        {"setup_optimizers", "set_schedule"},
        "optax has one transformation that follows the count of steps; torch has a list whose rates the loop sets",
    ),
    "parallel.py": (
        {
            *("Steps", "axis_name", "spread", "make_steps", "jit_steps", "pmap_steps", "fsdp_steps", "fsdp_train"),
            *("with_signal", "attention"),
        },
        {"initialize", "device", "wrap", "close", "shard", "text_of_first", "agree"},
        "JAX wraps the step, and processes.py does what is left; torch wraps the model and joins the processes",
    ),
    "step.py": (
        {"State", "init_state", "scan_train_steps", "summed_loss", "micro_step", "summed_gradients"},
        set(),
        "JAX's step is a pure function of a state, so that many run in one dispatch; torch's changes model and "
        "optimizers in place",
    ),
}


def files(room: str) -> set[str]:
    return {str(path.relative_to(ROOT / room)) for path in (ROOT / room).rglob("*.py")}


def public_names(path: Path) -> list[str]:
    """Functions and classes of a module, in order."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    found = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [name for name in found if not name.startswith("_")]


def test_torch_ref_has_no_file_that_jax_impl_lacks_and_the_reverse_is_listed():
    assert files("torch_ref") - files("jax_impl") == set()
    assert files("jax_impl") - files("torch_ref") <= set(JAX_FILES)


@pytest.mark.parametrize("file", sorted(files("jax_impl") & files("torch_ref")))
def test_both_have_the_same_names_in_the_same_order(file):
    ours, theirs = public_names(ROOT / "jax_impl" / file), public_names(ROOT / "torch_ref" / file)
    jax_only, torch_only, _ = WITHOUT_TWIN.get(file, (set(), set(), ""))
    assert set(ours) - set(theirs) == jax_only, "list what has no twin, with its reason"
    assert set(theirs) - set(ours) == torch_only, "list what has no twin, with its reason"
    shared = set(ours) & set(theirs)
    assert [name for name in ours if name in shared] == [name for name in theirs if name in shared]


def test_what_is_listed_has_a_reason():
    assert all(JAX_FILES.values())
    assert all(reason for *_, reason in WITHOUT_TWIN.values())
    assert set(WITHOUT_TWIN) <= files("jax_impl") & files("torch_ref")
