"""Greedy decoding with the KV cache: tokens per second of one sequence, and of sixteen together."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from bench import gpt_sides
from bench.interleave import interleave
from bench.options import Bench, Row
from bench.process import Sample, workers
from bench.rows import rows_of
from twinstep.init import initial_weights

MODEL = {"depth": 4, "d_model": 256, "head_dim": 128, "vocab_size": 256, "sequence_len": 256, "batch_size": 1}
GPU_MODEL = {
    "depth": 12, "d_model": 768, "head_dim": 128, "vocab_size": 32768, "sequence_len": 256, "batch_size": 1,
    "dtype": "bfloat16", "matmul_precision": "default",
}  # fmt: skip
TINY = {"depth": 1, "d_model": 32, "head_dim": 16, "vocab_size": 64, "sequence_len": 16, "batch_size": 1}
BATCHES = (1, 16)
GPU_SECONDS = 40  # that both sides need at least for one batch


def prepare(side: str, spec: dict[str, Any]) -> Any:
    """Continues `batch` prompts of `prompt` tokens by `tokens` more, always the same."""
    config = gpt_sides.config_of(spec["model"])
    vocab_size = spec["model"]["vocab_size"]
    prompts = list(np.random.default_rng(0).integers(0, vocab_size, (spec["batch"], spec["prompt"]), dtype=np.int32))
    if side == "jax":
        from jax_impl import cpu, parallel
        from jax_impl.decoding import generate_in_chunks
        from jax_impl.models import load_tree, make_model
        from jax_impl.tree import flatten

        parallel.set_precision(config)
        cpu.keep_freed_memory(config)
        model = make_model(config)
        shapes = {name: s.shape for name, s in flatten(model.params).items()}
        params = load_tree(model.params, initial_weights(shapes, 0, "nonzero"))
        start = lambda: generate_in_chunks(model, params, config, prompts, spec["tokens"], temperature=0)
    else:
        from torch_ref import generate as torch_generate
        from torch_ref.models import load_weights, weight_shapes
        from torch_ref.models import make_model as make_torch_model
        from torch_ref.parallel import set_precision
        from torch_ref.processes import device

        set_precision(config)
        torch_model: Any = make_torch_model(config)
        load_weights(torch_model, initial_weights(weight_shapes(torch_model), 0, "nonzero"))
        torch_model.to(device()).eval()
        start = lambda: torch_generate.generate(torch_model, config, prompts, spec["tokens"], temperature=0)
    return lambda: np.array(list(start())).tolist()


def measure(bench: Bench) -> Iterator[Row]:
    """Prompt read and text written; both sides must write the same tokens."""
    options = bench.options
    sizes = GPU_MODEL if bench.on_gpu else MODEL
    model, prompt, tokens = (TINY, 3, 4) if options.tiny else (sizes, 64, 128)
    for batch in BATCHES[:1] if options.tiny else BATCHES:
        bench.check_time(GPU_SECONDS)
        spec = {"model": model, "batch": batch, "prompt": prompt, "tokens": tokens}
        with workers("decoding", {"jax": spec, "torch": spec}, options.platform) as sides:
            samples = interleave(sides, options.rounds, warmups=1 if bench.on_gpu else 3, deadline=bench.deadline)
        written = batch * tokens
        found = rows_of(f"decoding, batch {batch}", samples, "tokens/s", partial(tokens_per_second, written))
        texts = {side: np.array(of_side[0].result) for side, of_side in samples.items()}
        for row in found:  # rounding can make two texts differ where two tokens are almost equally likely
            row.extra["same_tokens"] = float((texts["jax"] == texts["torch"]).mean())
        yield from found


def tokens_per_second(tokens: int, sample: Sample) -> float:
    return tokens / sample.seconds
