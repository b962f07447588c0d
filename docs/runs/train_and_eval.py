"""What the two modes change, and what forgetting to switch does to a run."""

import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import jax_impl.models as jax_models
from jax_impl.models import forward as jax_forward
from jax_impl.models.batch_norm import BatchNorm
from jax_impl.step import eval_step as jax_eval_step
from torch_ref.evaluate import evaluate, metrics
from torch_ref.input import eval_batches, to_tensors
from torch_ref.models import TORCH_ONLY, load_weights, make_model, weight_shapes
from torch_ref.optimizer import setup_optimizers
from torch_ref.step import eval_step, train_step
from twinstep.config import Config, MLPConfig
from twinstep.data import Data, load_data
from twinstep.init import initial_weights
from twinstep.presets import DEFAULTS
from twinstep.resolve import fill_in

STEPS = 100


def dropout() -> None:
    print("== dropout ==")
    ones = torch.ones(8)
    torch.manual_seed(0)
    layer = nn.Dropout(0.5)
    print("torch, train():", *layer(ones).int().tolist())
    print("torch, eval(): ", *layer.eval()(ones).int().tolist())
    flax = nnx.Dropout(0.5)
    print("flax,  train():", *flax(jnp.ones(8), rngs=jax.random.key(1)).astype(int).tolist())
    flax.eval()
    print("flax,  eval(): ", *flax(jnp.ones(8)).astype(int).tolist())


def attention() -> None:
    print("== attention ==")

    class Attention(nn.Module):
        def forward(self, x, dropout_p):
            return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout_p)

    torch.manual_seed(0)
    module, x = Attention().eval(), torch.randn(1, 4, 8)
    for name, p in {"dropout_p=0.5": 0.5, "dropout_p=0.5 if self.training else 0.0": 0.5 * module.training}.items():
        same = torch.equal(module(x, p), module(x, p))
        print(f"in eval(), {name}: two calls {'agree' if same else 'differ'}")


def statistics() -> None:
    print("== statistics ==")
    x = np.random.default_rng(0).normal(3, 2, (8, 1))
    torch_norm = nn.BatchNorm1d(1, momentum=0.1, dtype=torch.float64)
    torch_norm(torch.tensor(x))
    flax_norm = nnx.BatchNorm(1, momentum=0.9, dtype=jnp.float64, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    ours = BatchNorm(1, eps=1e-5, momentum=0.1, param_dtype=jnp.dtype("float64"))
    for norm in (flax_norm, ours):
        norm.mean.set_value(jnp.zeros(1, jnp.float64))  # Flax makes them float32
        norm.var.set_value(jnp.ones(1, jnp.float64))
        norm.train()
        norm(jnp.asarray(x))
    print(f"a batch of 8 with variance {x.var():.4f} (biased), {x.var(ddof=1):.4f} (unbiased)")
    print("running statistics after it, from 0 and 1:     mean    variance")
    rows = {
        "torch.nn.BatchNorm1d(momentum=0.1)": (torch_norm.running_mean.item(), torch_norm.running_var.item()),
        "flax.nnx.BatchNorm(momentum=0.9)": (flax_norm.mean[...].item(), flax_norm.var[...].item()),
        "jax_impl's BatchNorm": (ours.mean[...].item(), ours.var[...].item()),
    }
    for name, (mean, variance) in rows.items():
        print(f"{name:<46} {mean:.4f}  {variance:.4f}")


def subject() -> tuple[Config, Data]:
    """The MLP on the digits in float64; small batches, whose statistics are rough."""
    config = replace(DEFAULTS["mlp"], model=MLPConfig(hidden=32))
    config = replace(config, train=replace(config.train, steps=STEPS, batch_size=12, dtype="float64"))
    data = load_data(config)
    return fill_in(config, data), data


def train(config: Config, data: Data, switches_back: bool) -> tuple[nn.Module, float]:
    """A torch run with an evaluation before the first step, and the loss of its last step."""
    torch.manual_seed(0)
    model = make_model(config)
    load_weights(model, initial_weights(weight_shapes(model), 0))
    optimizers = setup_optimizers(config, model)
    model.eval()
    if switches_back:
        model.train()
    for step in range(STEPS):
        found = train_step(config, model, optimizers, step, to_tensors(data.train.batch(step)))
    return model, float(found["loss"])


def held_out(model: nn.Module, data: Data) -> dict[str, float]:
    """Loss and accuracy in whatever mode the model is."""
    return metrics(evaluate(lambda batch: eval_step(model, batch), eval_batches(data.validation, 0)))


def show(name: str, found: dict[str, float]) -> None:
    print(f"{name:<52} {found['val_loss']:9.4f} {found['val_accuracy']:9.4f}")


def forgetting(config: Config, data: Data) -> nn.Module:
    print("== forgetting eval ==")
    trained, _ = train(config, data, switches_back=True)
    trained.eval()
    print(f"{'evaluated':<52} {'val loss':>9} {'accuracy':>9}")
    show("in eval()", held_out(trained, data))
    show("in eval(), again", held_out(trained, data))
    wrong = copy.deepcopy(trained).train()
    torch.manual_seed(1)
    show("in train()", held_out(wrong, data))
    show("in train(), again", held_out(wrong, data))
    before, after = trained.norm.running_var, wrong.norm.running_var
    moved = (after - before).norm() / before.norm()
    print(f"running variance moved by the two evaluations in train(): {100 * moved:.0f} %")
    try:
        wrong(torch.zeros(1, 64))
    except ValueError as error:
        print(f"one example in train(): {str(error).split(',')[0]}")
    return trained


def not_switching_back(config: Config, data: Data) -> None:
    print("== forgetting train ==")
    print(f"{'trained':<36} {'last loss':>9} {'val loss':>9} {'accuracy':>9} {'running mean':>13}")
    for name, back in {"in train()": True, "in eval(): never switched back": False}.items():
        model, loss = train(config, data, switches_back=back)
        norm = model.norm.running_mean.norm()
        found = held_out(model.eval(), data)
        print(f"{name:<36} {loss:9.4f} {found['val_loss']:9.4f} {found['val_accuracy']:9.4f} {norm:13.3f}")


def in_jax(config: Config, data: Data, trained: nn.Module) -> None:
    """The torch run's weights in the JAX model: in eval mode the same numbers, in train mode no answer at all."""
    print("== jax ==")
    model = jax_models.make_model(config)
    arrays = {name: t.numpy() for name, t in trained.state_dict().items() if not name.endswith(TORCH_ONLY)}
    params, buffers = jax_models.load_tree(model.params, arrays), jax_models.load_tree(model.buffers, arrays)
    batches = [data.validation.batch(n) for n in range(data.validation.batches)]
    step = jax.jit(lambda batch: jax_eval_step(model, params, buffers, batch))
    found = metrics(evaluate(lambda batch: jax.tree.map(np.asarray, step(batch)), batches))
    show("the torch run's weights, bind(..., train=False)", found)
    try:
        jax_forward(model.bind(params, buffers, train=True), batches[0])
    except ValueError as error:
        print("bind(..., train=True) without a key:", str(error).splitlines()[0][:80])


if __name__ == "__main__":
    dropout()
    attention()
    with jax.enable_x64(True):
        statistics()
        config, data = subject()
        trained = forgetting(config, data)
        not_switching_back(config, data)
        in_jax(config, data, trained)
