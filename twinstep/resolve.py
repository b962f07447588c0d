"""Fill in what a configuration leaves to the data: sizes, and the number of steps."""

from dataclasses import replace

from twinstep.config import Config, CorpusConfig, EmbeddingConfig, GPTConfig
from twinstep.data import Data
from twinstep.errors import UserError
from twinstep.flops import flops_per_token, parameter_count


def fill_in(config: Config, data: Data) -> Config:
    """The configuration with every size and the number of steps set; what a run records.

    Raises UserError if the horizon is shorter than one step, or than the steps to profile.
    """
    model = config.model
    if isinstance(model, GPTConfig | EmbeddingConfig):
        assert data.tokenizer is not None
        size = data.tokenizer.vocab_size
        model = replace(model, vocab_size=model.vocab_size or size)
        if isinstance(config.data, CorpusConfig) and config.data.tokenizer_file is not None:
            # The run keeps a copy of the file, as it keeps a BPE that it trains: it no longer needs the path.
            config = replace(config, data=replace(config.data, tokenizer="bpe", bpe_vocab_size=size))
    else:
        model = replace(model, features=data.features, classes=data.classes)
    config = replace(config, model=model)
    steps = horizon(config)
    if config.output.profile_steps.stop > steps + 1:
        raise UserError(f"--profile is {config.output.profile}, but the run has {steps} steps; profile earlier ones")
    return replace(config, train=replace(config.train, steps=steps))


def horizon(config: Config) -> int:
    """Optimizer steps of a run: given, or from target FLOPs, or from tokens per parameter.

    Source: karpathy/nanochat, scripts/base_train.py, which counts all parameters, the embedding's too.
    """
    train, units = config.train, units_per_step(config)
    if train.target_flops is not None:
        steps = round(train.target_flops / (flops_per_token(config.model, sequence_len(config)) * units))
    elif train.tokens_per_parameter is not None:
        steps = int(train.tokens_per_parameter * parameter_count(config.model) // units)
    else:
        return train.steps
    if steps < 1:
        raise UserError("the horizon is shorter than one step; raise --target-flops or --tokens-per-parameter")
    return steps


def sequence_len(config: Config) -> int:
    """Tokens of one example; 1 for a table's row."""
    return config.data.sequence_len if isinstance(config.data, CorpusConfig) else 1


def units_per_step(config: Config) -> int:
    """Tokens of one optimizer step, or examples for a table."""
    return config.batch_size * sequence_len(config)
