"""Results to draw: made by hand, with everything in them that a check may find."""

import math

from parity.result import (
    STAGES,
    Curve,
    Diagnosis,
    Divergence,
    Result,
    StageResult,
    Status,
    TensorResult,
    ratio_to_budget,
)

EVIL = "<script>alert(1)</script>\" onmouseover='x' &amp; \x1b[31m$\\frac$ [bold]"


def tensor(
    stage: str,
    name: str,
    relative_l2: list[float],
    *,
    budget: float = 1e-13,
    status: list[Status] | None = None,
    ratio: list[float] | None = None,
    init: str = "nonzero",
    note: str = "",
    diagnosis: Diagnosis | None = None,
) -> TensorResult:
    """One tensor at steps 0, 1, …; it diverges where its error is beyond its budget, or not a number."""
    judged: list[Status] = ["agrees" if error <= budget else "diverges" for error in relative_l2]
    n = len(relative_l2)
    status = status or judged
    why, note = (note, "") if "diverges" not in status else ("", note)
    return TensorResult(
        stage, name, "", init, 8, [*range(n)], relative_l2, [budget] * n, ratio, status, note, why, diagnosis
    )


def result(tensors: list[TensorResult], curves: list[Curve] | None = None, **changes) -> Result:
    """A result whose stages and first divergence follow from its tensors."""
    stages = {stage: of_stage([t for t in tensors if t.stage == stage]) for stage in STAGES}
    first = None
    for t in sorted(tensors, key=lambda t: STAGES.index(t.stage)):
        if "diverges" in t.status and first is None:
            i = t.status.index("diverges")
            first = Divergence(
                t.stage, t.tensor, t.steps[i], t.init, t.relative_l2[i], t.budget[i], t.note, diagnosis=t.diagnosis
            )
    fixed = {"model": "gpt", "dtype": "float64", "steps": 3, "seed": 0, "seeds": 1, "devices": 1, "seconds": 4.2}
    kept = {stage: found for stage, found in stages.items() if found is not None}
    return Result(
        **{**fixed, "stages": kept, "tensors": tensors, "curves": curves or [], "first_divergence": first, **changes}
    )


def of_stage(tensors: list[TensorResult]) -> StageResult | None:
    if not tensors:
        return None
    rows = [(t, i) for t in tensors for i in range(len(t.steps)) if t.status[i] != "unchecked"]
    unchecked = sum(t.status.count("unchecked") for t in tensors)
    if not rows:
        return StageResult("unchecked", "", 0, "", 0.0, 0.0, None, None, 0, unchecked, 0, {})

    def used(row):
        value = ratio_to_budget(row[0].relative_l2[row[1]], row[0].budget[row[1]])
        return math.inf if math.isnan(value) else value

    worst, at = max(rows, key=used)
    diverged = sum(t.status[i] == "diverges" for t, i in rows)
    ratio = None if worst.ratio is None else worst.ratio[at]
    by_step: dict[int, float] = {}
    for row in rows:
        by_step[row[1]] = max(by_step.get(row[1], 0.0), used(row))
    return StageResult(
        "diverges" if diverged else "agrees",
        worst.tensor,
        worst.steps[at],
        worst.init,
        worst.relative_l2[at],
        worst.budget[at],
        ratio,
        None if ratio is None else 1.03,
        len(rows),
        unchecked,
        diverged,
        by_step,
    )


def curve(init: str = "nonzero", steps: int = 3, scale: float = 1e-16, broken: bool = False) -> Curve:
    loss = [5.5 / (1 + 0.1 * step) for step in range(steps)]
    error = [scale * (1 + step) for step in range(steps)]
    port = [x * (1 + e) for x, e in zip(loss, error, strict=True)]
    if broken:
        port[steps // 2 :] = [math.nan] * (steps - steps // 2)
        error[steps // 2 :] = [math.inf] * (steps - steps // 2)
    watched = [*range(0, steps, max(1, steps // 10))]
    return Curve(
        init,
        [*range(steps)],
        loss,
        port,
        error,
        [0.0, *(2 * scale * step for step in range(1, steps))],
        [20 * scale * (1 + step) for step in range(steps)],
        watched,
        [scale] * len(watched),
        [scale / 2] * len(watched),
    )


def agreeing() -> Result:
    return result(
        [
            tensor("data", "tokens", [0.0, 0.0], budget=0.0),
            tensor("weights", "h.0.attn.c_q.weight", [0.0], budget=0.0),
            tensor("activations", "h.0.attn.c_q", [1e-15, 2e-15]),
            tensor("activations", "h.0.attn.c_q [1]", [1e-15, 3e-15]),
            tensor("gradients", "d h.0.attn.c_q", [0.0, 4e-12], budget=1e-11, status=["unchecked", "agrees"],
                   note="the reference is zero, or noise"),
            tensor("gradients", "h.0.attn.c_q.weight", [0.0, 3e-12], budget=1e-11, init="native"),
            tensor("update", "momentum/h.0.attn.c_q.weight", [0.0, 0.0], budget=1e-10),
            tensor("evaluation", "val_loss", [0.0], status=["unchecked"], note="the reference is not finite"),
        ],
        [curve(), curve("native")],
        notes=["1 of 4 comparisons of gradients could not be checked."],
        command="python -m parity check gpt --dtype float64 --steps 3 --seed 0",
        environment={"jax": "0.10.2", "torch": "2.13.0"},
        config={"model": {"depth": 2}, "train": {"steps": 3, "seed": 0}},
    )  # fmt: skip


def diverging() -> Result:
    """A layer that is wrong, one that is not a number, one that is missing, and names made to do harm."""
    return result(
        [
            tensor("weights", EVIL, [0.0], budget=0.0),
            tensor("weights", "h.1.weight", [math.inf], budget=0.0, note="not there in JAX <i>"),
            tensor("activations", "h.0", [1e-15, 2e-15]),
            tensor("activations", EVIL, [3e-3, 4e-3], note="shape (2, 3) in torch, (3, 2) in JAX"),
            tensor("activations", "h.1", [math.nan, math.inf], status=["diverges", "diverges"]),
            tensor("gradients", f"d {EVIL}", [0.0], status=["unchecked"], note=EVIL),
            tensor("loss", "loss", [2e-5]),
        ],
        [curve(EVIL, broken=True)],
        model=EVIL,
        notes=[EVIL],
        command=EVIL,
        environment={EVIL: EVIL},
        config={EVIL: {EVIL: EVIL}},
    )


def in_float32(layers: int = 60, seeds: int = 8, steps: int = 40) -> Result:
    """Hundreds of tensors with ratios of errors, several seeds, long names."""
    tensors = []
    for i in range(layers):
        name = f"transformer.blocks.{i}.a_rather_long_module_name_{'x' * 60}.projection"
        ratios = [1.0 + (i % 7) / 10, 0.9]
        errors = [2e-7 * ratio for ratio in ratios]
        for stage, tail in (
            ("activations", ""),
            ("gradients", ".weight"),
            ("update", ".weight"),
            ("weights", ".weight"),
        ):
            tensors.append(tensor(stage, name + tail, errors, budget=8e-7, ratio=ratios))
    curves = [curve(init, steps, 1e-7 * (1 + seed / 4)) for seed in range(seeds) for init in ("nonzero", "native")]
    return result(tensors, curves, dtype="float32", seeds=seeds, steps=steps, seconds=128.0)


def empty() -> Result:
    """A check that ended before it compared anything."""
    return result([], [])


ROWS = [
    {"name": "linear weight not transposed", "model": "gpt", "equivalent": False, "expected_stage": "weights",
     "found_stage": "weights", "ratio_to_budget": None, "reason": "no shape error when the matrix is square"},
    {"name": "clip inside multi_transform", "model": "gpt", "equivalent": False, "expected_stage": "clip",
     "found_stage": "update", "ratio_to_budget": 4.2e8,
     "ratios": {"loss": 0.2, "clip": None, "update": 4.2e8, "parameters": 31.0}, "about": "each group clipped alone"},
    {"name": EVIL, "model": "mlp", "equivalent": False, "expected_stage": "schedule",
     "found_stage": None, "ratio_to_budget": 0.4},
    {"name": "rotary after QK-norm", "model": "gpt", "equivalent": True, "expected_stage": None,
     "found_stage": None, "ratio_to_budget": 0.012, "reason": EVIL},
    {"name": "renamed module", "model": "gpt", "equivalent": True, "expected_stage": None,
     "found_stage": "activations", "ratio_to_budget": math.inf},
]  # fmt: skip
