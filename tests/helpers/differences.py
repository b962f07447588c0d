"""Where the two implementations don't mirror each other, and why. tests/test_mirrors.py holds the list to the code.

An entry of a file: names that only jax_impl has, names that only torch_ref has, why. An entry of "file name": the same
of the parameters of a function or method that both have. jax_impl's `__call__` counts as `forward`; a class without a
twin stands for its methods; `__init__` may be inherited.
"""

# Files that only jax_impl has, and why. torch_ref has none that jax_impl lacks.
JAX_FILES = {
    "aot/__init__.py": "the package",
    "aot/__main__.py": "the command",
    "aot/absent_cudnn.py": "JAX asks for a card where none is needed",
    "aot/compile.py": "compiling for a machine that is not there is XLA's",
    "aot/gpus.py": "GPUs as XLA's compiler sees them",
    "aot/hlo.py": "reading of XLA's compiled programs",
    "aot/kernels.py": "counting in XLA's compiled programs",
    "aot/roofline.py": "what a program of XLA's is bound by",
    "aot/topologies.py": "descriptions of machines that are not there",
    "checksum.py": "a checksum for each array, computed where its shards are; torch hashes the files",
    "compilation_cache.py": "compiled programs kept on disk; torch.compile keeps its own",
    "cpu.py": "the options with which XLA is fast on a CPU; torch_ref is torch as it comes",
    "decoding.py": "generate's fast form: prompts in chunks, several tokens to a dispatch",
    "fsdp.py": "sharding parameters over devices; torch_ref shows data parallel only",
    "head_loss.py": "the loss's fast derivatives: one pass over the logits, large ones in chunks",
    "mesh.py": "how arrays lie on several devices, for fsdp",
    "models/block_scan.py": "fsdp's form of the loop over the blocks",
    "models/blockwise.py": "attention's fast form; torch has scaled_dot_product_attention",
    "models/cudnn.py": "cuDNN's attention kernel for NVIDIA GPUs; torch has scaled_dot_product_attention",
    "models/splash.py": "JAX's Pallas attention kernel for TPUs; torch has scaled_dot_product_attention",
    "plot.py": "one command draws the runs of both",
    "stacks.py": "Muon's fast form: matrices of one shape in a stack, and the stack sharded",
    "tree.py": "nested dicts and flat names; a torch module holds its arrays under their names",
}

ARRAYS_APART = "a torch model holds its weights and its random generator; in JAX they are arguments beside it"
IN_PLACE = "JAX's step takes a state and returns it; torch's changes the model and the optimizers in place"
GRADIENTS = "JAX returns gradients, torch adds them to `.grad`, of the mean loss already"
MANAGER = "orbax's manager knows the run and reads the step from the state; the torch side writes the files itself"
KEY = "dropout draws from a key in JAX, from a hidden generator in torch"

DIFFERENCES: dict[str, tuple[str, str, str]] = {
    "checkpoint.py": (
        "open_manager, finish, read_items, attempt, name_arrays",
        "read_file, training_tensors, load_training_tensors",
        "orbax saves beside training, from arrays on several devices, through a manager; safetensors are files of "
        "their own, and torch's optimizers and generators are objects",
    ),
    "checkpoint.py save": ("manager, state", "run, step, model, optimizers", MANAGER),
    "checkpoint.py restore": (
        "like",
        "model, optimizers",
        "JAX restores into a tree of shapes, torch into its objects",
    ),
    "checkpoint.py split_state": ("state", "model, optimizers", IN_PLACE),
    "generate.py generate": ("params", "", ARRAYS_APART),
    "generate.py sample_text": ("params", "", ARRAYS_APART),
    "input.py": ("", "to_tensors", "JAX takes NumPy arrays as they are"),
    "losses.py loss_sums": ("cross_entropy", "", "or the same with the derivative of head_loss.py"),
    "models/__init__.py": (
        "Model, make_module, load_tree",
        "weight_shapes, load_weights",
        "a torch module holds its arrays under their names; JAX has a structure and a tree apart",
    ),
    "models/__init__.py make_model": (
        "axis_name, attention, scan_blocks",
        "",
        "BatchNorm is told the mapped axis, where torch asks its process group; the fast forms are chosen outside",
    ),
    "models/__init__.py forward": ("key", "", KEY),
    "models/batch_norm.py": ("", "AllReduceSum", "nnx.BatchNorm sums over devices by itself"),
    "models/gpt.py GPT.rotary": ("size", "", "XLA needs the table's size where torch cuts it to the start"),
    "models/layers.py": ("Module, Identity", "", "torch.nn's own, as far as we need them"),
    "models/mlp.py Dropout.forward": ("key", "", KEY),
    "models/mlp.py MLPClassifier.forward": ("key", "", KEY),
    "muon.py": (
        "orthogonalize_tree, MuonState, muon",
        "Muon",
        "a gradient transformation is a state and two functions, an optimizer of torch is a class",
    ),
    "optimizer.py": (
        "make_optimizer, make_transform, learning_rate_at, logged_learning_rate",
        "setup_optimizers, set_schedule",
        "optax has one transformation that follows the count of steps; torch has a list whose rates the loop sets",
    ),
    "optimizer.py clip_by_global_norm": ("grads", "model", GRADIENTS),
    "optimizer.py group_norms": ("config, params, updates", "optimizers, before", IN_PLACE),
    "parallel.py": (
        "Steps, axis_name, attention, scans_blocks, muon_stacks, make_steps, jit_steps, pmap_steps, fsdp_steps, "
        "fsdp_train, with_signal",
        "wrap",
        "JAX wraps the step, in several ways, and chooses the fast forms; torch wraps the model",
    ),
    "processes.py": (
        "launched_by_cluster, first_does, has_lost, leave_together",
        "device, close",
        "jax.distributed knows pods and SLURM, and a lost process must be told apart; torchrun does both",
    ),
    "processes.py agreed": ("gathered", "", "JAX's step brings the processes' signals together itself"),
    "step.py": (
        "State, init_state, summed_loss, scan_train_steps",
        "",
        "JAX differentiates a function of the parameters, and its step is a pure function of a state, so that many run "
        "in one dispatch",
    ),
    "step.py micro_step": ("params, buffers, key", "targets", GRADIENTS),
    "step.py summed_gradients": ("params, buffers, key", "targets", GRADIENTS),
    "step.py train_step": ("optimizer, state, axis_name, gradients", "optimizers, step", IN_PLACE),
    "step.py eval_step": ("params, buffers, axis_name", "", ARRAYS_APART),
    "train.py record": ("params, pending", "model, step, found", "JAX logs a step when the next has been dispatched"),
}
