"""The engine for any port needs neither of our trainers: of them it may use only `jax_impl.tree`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("jax_impl.", "torch_ref")) and name != "jax_impl.tree":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import torch

import parity

module = torch.nn.Linear(5, 3)
params = {"kernel": np.zeros((5, 3), np.float32), "bias": np.zeros(3, np.float32)}
rules = [parity.Rule("weight", "kernel", axes=(1, 0)), parity.Rule("bias", "bias")]
params = parity.carry({name: x.numpy() for name, x in module.state_dict().items()}, params, rules)
x = np.random.default_rng(0).standard_normal((4, 5))
result = parity.compare(module, lambda params, x: x @ params["kernel"] + params["bias"], params, [x], weights=rules)
assert parity.linen_function and parity.nnx_function
print(result.verdict)
"""


def test_a_foreign_pair_is_compared_where_our_models_cannot_be_imported():
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "agrees"), done.stderr
