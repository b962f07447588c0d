"""What the bridge says of a wrong name map, then the example: from a wrong layer to green."""

from dataclasses import replace

import jax
import numpy as np

from examples import check_your_port
from parity.weights import Rule, carry_to_jax, map_names
from twinstep.errors import UserError

ARRAYS = {"fc1.weight": np.zeros((32, 64)), "fc1.bias": np.zeros(32)}
LIKE = {
    "fc1.kernel": jax.ShapeDtypeStruct((64, 32), np.float64),
    "fc1.bias": jax.ShapeDtypeStruct((32,), np.float64),
}
WEIGHT, BIAS = Rule(r"(fc\d)\.weight", r"\1.kernel", axes=(1, 0)), Rule(r"(fc\d)\.bias", r"\1.bias")


def refused(name: str, *rules: Rule) -> None:
    try:
        carry_to_jax(map_names(rules, ARRAYS, LIKE), ARRAYS, LIKE)
    except UserError as error:
        print(f"{name}:\n  {error}")


if __name__ == "__main__":
    print("== refused ==")
    refused("no rule for the biases", WEIGHT)
    refused("the transpose forgotten", replace(WEIGHT, axes=()), BIAS)
    refused("a leaf misspelt", WEIGHT, Rule(r"(fc\d)\.bias", r"\1.offset"))
    check_your_port.main()
