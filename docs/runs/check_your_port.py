"""What is found out about carried weights by their numbers, then the example: from a wrong layer to green."""

import ml_dtypes
import numpy as np
import torch

from examples import check_your_port
from jax_impl.tree import flatten
from parity.sources import find_sources
from parity.sources.wording import described

if __name__ == "__main__":
    torch.manual_seed(0)
    state = check_your_port.Original().state_dict()
    arrays = {name: x.numpy() for name, x in state.items()}
    leaves = flatten(check_your_port.convert(state))
    print("== found ==")
    for leaf, source in find_sources(arrays, leaves).sources.items():
        print(f"{leaf:<11} {described(source)}")
    print("== not found ==")
    leaves["fc1.bias"] = np.roll(leaves["fc1.bias"], 1)
    leaves["fc1.kernel"] = leaves["fc1.kernel"].astype(ml_dtypes.bfloat16).astype(np.float32)
    leaves["fc2.kernel"] = np.random.default_rng(0).normal(size=(32, 10))
    for leaf, nearest in find_sources(arrays, leaves).missing.items():
        print(f"{leaf:<11} {nearest}")
    check_your_port.main()
