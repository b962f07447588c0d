"""Configurations drawn at random, and a process that checks some of them.

`python -m tests.helpers.random_configs N ...` checks those numbers, each over all devices that JAX has, and prints one
JSON object per number.
"""

import json
import sys
from dataclasses import replace

import numpy as np

from twinstep.config import (
    Config,
    CorpusConfig,
    EmbeddingConfig,
    GPTConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    TabularConfig,
    TrainConfig,
)

DEVICES = (1, 2, 4)
SHARED = 4  # numbers that share all that is compiled, and differ in seed and masks: compiling takes the longest
STEPS = 3  # the native start passes no gradient to all parameters before the third


def devices_of(number: int) -> int:
    return DEVICES[number // SHARED % len(DEVICES)]


def draw(number: int) -> Config:
    """The configuration of a number: always the same one. Sizes are small, odd ones among them."""
    shared, own = np.random.default_rng(number // SHARED), np.random.default_rng((number, 1))
    accumulation = int(shared.integers(1, 4))
    micro_batch = devices_of(number) * int(shared.integers(1, 4))
    config = Config(
        model=draw_gpt(shared),
        data=CorpusConfig(sequence_len=int(shared.integers(1, 97)), masked_targets=float(own.choice([0, 0.2, 0.7]))),
        optimizer=draw_optimizer(shared),
        train=TrainConfig(
            steps=STEPS,
            batch_size=accumulation * micro_batch,
            accumulation=accumulation,
            seed=int(own.integers(2**31)),
            dtype="float64",
            remat=bool(shared.integers(2)),
            eval_batches=1,
        ),
    )
    match shared.integers(8):
        case 0:
            table = TabularConfig(dataset="breast_cancer")
            return replace(config, model=LinearConfig(head=shared.choice(["softmax", "sigmoid"])), data=table)
        case 1:
            return replace(config, model=EmbeddingConfig(d_model=int(shared.integers(1, 40))))
        case 2:
            model = MLPConfig(int(shared.integers(2, 60)), dropout=float(shared.random() / 2), shared_dropout=True)
            # BatchNorm over one example has a variance of zero, which torch refuses.
            train = replace(config.train, batch_size=4 * config.train.batch_size)
            return replace(config, model=model, data=TabularConfig(), train=train)
    return config


def draw_gpt(random: np.random.Generator) -> GPTConfig:
    """Up to three blocks, one to three key/value heads, each for one to three query heads."""
    kv_heads, group, head_dim = (int(random.integers(1, 4)), int(random.integers(1, 4)), 2 * int(random.integers(1, 9)))
    return GPTConfig(
        depth=int(random.choice([1, 1, 2, 3])),
        d_model=kv_heads * group * head_dim,
        head_dim=head_dim,
        kv_heads=kv_heads,
        vocab_size=int(random.integers(256, 300)),
        rotary_dtype=random.choice(["bfloat16", "float32", "float64"]),
        rope_theta=float(random.choice([100.0, 10000.0, 500000.0])),
        softcap=float(random.uniform(5, 30)),
    )


def draw_optimizer(random: np.random.Generator) -> OptimizerConfig:
    """Decay, clipping and schedules on and off, at rates around the usual ones."""
    return OptimizerConfig(
        optimizer=random.choice(["muon", "muon", "adamw"]),
        matrix_lr=float(0.02 * 2 ** random.normal()),
        embedding_lr=float(0.2 * 2 ** random.normal()),
        adamw_lr=float(0.01 * 2 ** random.normal()),
        weight_decay=float(random.choice([0, 0.1])),
        matrix_weight_decay=float(random.choice([0, 0.1])),
        decay_schedule=random.choice(["constant", "linear"]),
        clip_norm=float(random.choice([0, 0.1, 1, 1000])),
        warmup_fraction=float(random.choice([0, 0.4])),
        final_lr_fraction=float(random.choice([0, 0.1])),
        momentum_steps=int(random.integers(1, 6)),
    )


def main(numbers: list[int]) -> None:
    from parity.check import check_here
    from parity.environment import use_one_thread
    from parity.request import Request

    use_one_thread()
    for number in numbers:
        result = check_here(Request(draw(number), devices=devices_of(number)))
        compared = {name: stage.compared for name, stage in result.stages.items()}
        found = {"number": number, "verdict": result.verdict, "sentence": result.sentence, "compared": compared}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
