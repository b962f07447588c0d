"""Where the two implementations don't mirror each other, and why. tests/test_mirrors.py holds the list to the code.

An entry of a file: names that only jax_impl has, names that only torch_ref has, why. An entry of "file name": the same
of the parameters of a function or method that both have. jax_impl's `__call__` counts as `forward`; a class without a
twin stands for its methods; `__init__` may be inherited.
"""

# Files that only jax_impl has, and why. torch_ref has none that jax_impl lacks.
JAX_FILES = {
    "aot/__init__.py": "the package",
    "aot/__main__.py": "the command",
    "aot/chips.py": "the table of accelerators that aot and MFU look up",
    "aot/compile.py": "compiling for a machine that is not there is XLA's",
    "aot/hlo.py": "reading of XLA's compiled programs",
    "aot/roofline.py": "what a program of XLA's is bound by",
    "cpu.py": "what XLA on a CPU needs to be told; torch_ref is torch as it comes",
    "fsdp.py": "sharding parameters over devices; torch_ref shows data parallel only",
    "head_loss.py": "large logits in chunks without a copy in float32; torch_ref makes them at once, as torch users do",
    "models/splash.py": "JAX's Pallas attention kernel for TPUs; torch has scaled_dot_product_attention",
    "plot.py": "one command draws the runs of both",
    "tree.py": "nested dicts and flat names; a torch module holds its arrays under their names",
    "processes.py": "jax.distributed; torch_ref has torchrun, and parallel.py for what is left",
}

ARRAYS_APART = "a torch model holds its weights; in JAX they are an argument beside it"
IN_PLACE = "JAX's step takes a state and returns it; torch's changes the model and the optimizers in place"
MANAGER = "orbax's manager knows the run and reads the step from the state; the torch side writes the files itself"

DIFFERENCES: dict[str, tuple[str, str, str]] = {
    "checkpoint.py": (
        "open_manager, finish, attempt, save_error, first_line, split_state, array_names, inspect_arrays, "
        "numpy_checksum, check_sums",
        "training_tensors, load_training_tensors, read_file, sha256, sync",
        "orbax saves beside training, from arrays on several devices: a manager, and a checksum for each array; "
        "safetensors are files of their own, with a hash each",
    ),
    "checkpoint.py save": ("manager, state", "run, step, model, optimizers", MANAGER),
    "checkpoint.py restore": (
        "like",
        "model, optimizers",
        "JAX restores into a tree of shapes, torch into its objects",
    ),
    "generate.py generate": ("params", "", ARRAYS_APART),
    "generate.py sample_text": ("params", "", ARRAYS_APART),
    "input.py": ("", "to_tensors", "JAX takes NumPy arrays as they are"),
    "models/__init__.py": (
        "Model, load_tree",
        "weight_shapes, load_weights",
        "a torch module holds its arrays under their names; JAX has a structure and a tree apart",
    ),
    "models/__init__.py make_model": (
        "axis_name, attend",
        "",
        "BatchNorm is told the mapped axis, where torch asks its process group; on a TPU attention is another kernel",
    ),
    "models/attention.py": (
        "cached_attention",
        "",
        "behind a cache XLA needs one shape for every length, and its heads first; torch cuts the cache to its length",
    ),
    "models/attention.py causal_attention": ("k_BTKC, v_BTKC", "k_BSKC, v_BSKC, start", "torch's serves a cache too"),
    "models/gpt.py": (
        "GPT.hidden, GPT.head",
        "",
        "the loss of large logits needs what comes before the head, and the head",
    ),
    "models/mlp.py": (
        "",
        "AllSum, Dropout",
        "nnx.BatchNorm sums over devices by itself, and its dropout takes a key instead of a mask",
    ),
    "models/mlp.py BatchNorm.forward": ("use_running_average, mask", "", "nnx.BatchNorm's own parameters"),
    "models/mlp.py MLP.__init__": ("axis_name", "", "the mapped axis of BatchNorm; torch asks its process group"),
    "models/mlp.py MLP.forward": ("key", "", "dropout draws from a key in JAX, from a hidden generator in torch"),
    "muon.py": (
        "on_every_device, by_stacks, MuonState, orthogonalize_tree, muon",
        "Muon",
        "a gradient transformation is a state and two functions, an optimizer of torch is a class",
    ),
    "optimizer.py": (
        "make_optimizer, make_transform",
        "setup_optimizers, set_schedule",
        "optax has one transformation that follows the count of steps; torch has a list whose rates the loop sets",
    ),
    "optimizer.py clip_by_global_norm": (
        "",
        "model",
        "optax makes a transformation, torch clips the gradients in place",
    ),
    "parallel.py": (
        "Steps, axis_name, spread, make_steps, jit_steps, pmap_steps, fsdp_steps, fsdp_train, with_signal, attention",
        "initialize, device, wrap, close, shard, text_of_first, agree",
        "JAX wraps the step, and processes.py does what is left; torch wraps the model and joins the processes",
    ),
    "step.py": (
        "State, init_state, scan_train_steps, summed_loss, micro_step, summed_gradients",
        "",
        "JAX's step is a pure function of a state, so that many run in one dispatch; torch's changes model and "
        "optimizers in place",
    ),
    "step.py forward": ("module, key", "model", "a module bound to its arrays for one call, and dropout's key"),
    "step.py train_step": ("optimizer, state, axis_name, gradients", "optimizers, step", IN_PLACE),
    "step.py eval_step": ("params, buffers, axis_name", "", ARRAYS_APART),
    "train.py record": ("params, pending", "model, step, found", "JAX logs a step when the next has been dispatched"),
}
