"""How many floating-point operations a training step takes, counted in two ways.

`flops_per_token` counts as upstream does (karpathy/nanochat, nanochat/gpt.py, `estimate_flops`; the 6 and the 12 are
those of arXiv:2204.02311, appendix B): it sets horizons and MFU, so that figures compare with published ones.
`matrix_flops_per_step` counts what the matrix products of one step really need: attention below the causal mask
only, and Newton-Schulz, which upstream leaves out. The benchmarks compare it with the measured peak.

A multiply-add is two operations. Backward takes twice forward: one product for the input's gradient, one for the
weight's. What rematerialization and attention's backward pass recompute is not counted, nor is element-wise work.
For classifiers a token is an example.
"""

from twinstep.config import Config, EmbeddingConfig, GPTConfig, LinearConfig, MLPConfig, ModelConfig
from twinstep.errors import UserError


def matrix_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name -> (out, in) of every weight that multiplies activations; tables that are looked up are not among them.

    Raises UserError while sizes that come from the data (vocabulary, features, classes) are not filled in.
    """
    match model:
        case GPTConfig():
            width, kv_width = model.width, model.key_value_heads * model.head_dim
            block = {
                "attn.c_q": (width, width),
                "attn.c_k": (kv_width, width),
                "attn.c_v": (kv_width, width),
                "attn.c_proj": (width, width),
                "mlp.c_fc": (4 * width, width),
                "mlp.c_proj": (width, 4 * width),
            }
            shapes = {f"h.{n}.{name}.weight": shape for n in range(model.depth) for name, shape in block.items()}
            return {**shapes, "lm_head.weight": (_known(model.vocab_size, "vocabulary"), width)}
        case LinearConfig():
            return {"linear.weight": (model.logits, _known(model.features, "features"))}
        case EmbeddingConfig():
            return {"linear.weight": (_known(model.vocab_size, "vocabulary"), model.d_model)}
        case MLPConfig():
            return {
                "fc1.weight": (model.hidden, _known(model.features, "features")),
                "fc2.weight": (_known(model.classes, "classes"), model.hidden),
            }


def parameter_count(model: ModelConfig) -> int:
    """All trained parameters: matrices, embedding tables, biases, BatchNorm's scale and shift."""
    matrices = sum(rows * columns for rows, columns in matrix_shapes(model).values())
    match model:
        case GPTConfig():
            return matrices + _known(model.vocab_size, "vocabulary") * model.width
        case LinearConfig():
            return matrices + model.logits
        case EmbeddingConfig():
            return matrices + _known(model.vocab_size, "vocabulary") * model.d_model
        case MLPConfig():
            return matrices + _known(model.classes, "classes") + 2 * model.hidden


def flops_per_token(model: ModelConfig, sequence_len: int = 1) -> int:
    """Forward and backward of one token: 6 per matrix element, and 12 L H C T for gpt's attention, mask ignored."""
    flops = 6 * sum(rows * columns for rows, columns in matrix_shapes(model).values())
    if isinstance(model, GPTConfig):
        flops += 12 * model.depth * model.heads * model.head_dim * sequence_len
    return flops


def matrix_flops_per_step(config: Config, sequence_len: int = 1) -> int:
    """Operations in the matrix products of one optimizer step on `config.batch_size` sequences or examples."""
    model, sequences = config.model, config.batch_size
    flops = 6 * sequences * sequence_len * sum(rows * columns for rows, columns in matrix_shapes(model).values())
    if isinstance(model, GPTConfig):
        # Query t attends to t + 1 keys in two products of the forward pass; backward has four more of that size.
        pairs = sequence_len * (sequence_len + 1) // 2
        flops += 3 * 2 * 2 * sequences * model.depth * model.heads * model.head_dim * pairs
    return flops + newton_schulz_flops(config)


def newton_schulz_flops(config: Config) -> int:
    """Operations of Muon's orthogonalization in one step, on the wide orientation: A = X X^T, A A, (b A + c A A) X."""
    o = config.optimizer
    if o.optimizer != "muon" or o.matrix_optimizer != "muon":
        return 0
    flops = 0
    for name, shape in matrix_shapes(config.model).items():
        if name != "lm_head.weight":  # the head is AdamW's
            small, large = sorted(shape)
            flops += o.newton_schulz_steps * (4 * small * small * large + 2 * small**3)
    return flops


def _known(size: int | None, what: str) -> int:
    if size is None:
        raise UserError(f"FLOPs cannot be counted before the number of {what} is known; it comes from the data")
    return size
