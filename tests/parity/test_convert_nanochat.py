import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from parity.convert import convert
from parity.formats.snapshot import optimizer_shapes_of
from tests.helpers.snapshots import GPT, assert_same, make_snapshot, read, written
from twinstep.config import OptimizerConfig
from twinstep.data.tokenizer import train_bpe
from twinstep.errors import UserError
from twinstep.run_dir import checkpoint_steps

# More layers than nine, so that h.10 must not come before h.2.
DEEP = replace(GPT, model=replace(GPT.model, depth=11))
BLOCK = {"attn": ("c_q", "c_k", "c_v", "c_proj"), "mlp": ("c_fc", "c_proj")}


class Block(nn.Module):
    """Modules named, sized and declared as upstream's."""

    def __init__(self, d: int, kv: int):
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Module()
        for name, size in (("c_q", d), ("c_k", kv), ("c_v", kv), ("c_proj", d)):
            setattr(self.attn, name, nn.Linear(d, size, bias=False))
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)


def make_upstream(meta: dict) -> nn.Module:
    """A module whose state_dict is upstream's, from a meta file."""
    c = meta["model_config"]
    d, kv = c["n_embd"], c["n_embd"] // c["n_head"] * c["n_kv_head"]
    model = nn.Module()
    h = nn.ModuleList([Block(d, kv) for _ in range(c["n_layer"])])
    model.transformer = nn.ModuleDict({"wte": nn.Embedding(c["vocab_size"], d), "h": h})
    model.lm_head = nn.Linear(d, c["vocab_size"], bias=False)
    return model


class UpstreamMuon(torch.optim.Optimizer):
    """Upstream's groups: one per size, in the order of a set."""

    def __init__(self, params):
        params = [*params]
        sizes = {p.numel() for p in params}
        groups = [{"params": [p for p in params if p.numel() == size]} for size in sizes]
        super().__init__(groups, {"lr": 0.02, "momentum": 0.95, "nesterov": True, "ns_steps": 5})


def make_optimizers(model: nn.Module) -> tuple[torch.optim.Optimizer, UpstreamMuon]:
    groups = [{"params": [*model.lm_head.parameters()]}, {"params": [*model.transformer.wte.parameters()]}]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    return adamw, UpstreamMuon(model.transformer.h.parameters())


def load(folder: Path, name: str):
    return torch.load(folder / name, weights_only=True)


@pytest.mark.parametrize("format", ["jax", "torch"])
def test_a_run_goes_to_nanochat_and_back_bit_for_bit(tmp_path, format):
    snapshot = make_snapshot(GPT, 123)
    convert(written(tmp_path / "source", snapshot, format), tmp_path / "nanochat", None, "nanochat", None)
    names = ["meta_000123.json", "model_000123.pt", "optim_000123_rank0.pt"]
    assert sorted(path.name for path in (tmp_path / "nanochat").iterdir()) == names
    convert(tmp_path / "nanochat", tmp_path / "back", None, format, None)
    assert_same(read(tmp_path / "back", format, None), snapshot)


def test_upstreams_modules_and_optimizers_take_what_is_written(tmp_path):
    snapshot = make_snapshot(DEEP, 7)
    folder = written(tmp_path / "nanochat", snapshot, "nanochat")
    meta = json.loads((folder / "meta_000007.json").read_text())
    model = make_upstream(meta)
    model.load_state_dict(load(folder, "model_000007.pt"), strict=True, assign=True)
    optimizers = make_optimizers(model)
    for optimizer, state in zip(optimizers, load(folder, "optim_000007_rank0.pt"), strict=True):
        optimizer.load_state_dict(state)
        assert all("initial_lr" in group for group in optimizer.param_groups)  # upstream's schedule multiplies it
    for name, parameter in model.named_parameters():
        ours = name.removeprefix("transformer.")
        assert np.array_equal(parameter.detach().numpy(), snapshot.weights[ours])
        state = optimizers["h." in name].state[parameter]
        for key, tensor in state.items():
            expected = 7 if key == "step" else snapshot.optimizer[f"{ours}/{key}"]
            assert np.array_equal(tensor.numpy(), expected), (name, key)
    assert meta["step"] == 7
    assert meta["val_bpb"] == meta["loop_state"]["min_val_bpb"] == 1.5
    assert meta["user_config"]["total_batch_size"] == GPT.train.batch_size * 32
    assert meta["user_config"]["num_iterations"] == GPT.train.steps


def write_upstream(folder: Path, **settings) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A checkpoint as scripts/base_train.py writes it after one step, the embedding in bfloat16."""
    torch.manual_seed(0)
    sizes = {"sequence_len": 16, "vocab_size": 300, "n_layer": 11, "n_head": 4, "n_kv_head": 2, "n_embd": 32}
    user = {"embedding_lr": 0.3, "unembedding_lr": 0.005, "matrix_lr": 0.03, "weight_decay": 0.1, "grad_clip": 0.5}
    user |= {"warmup_ratio": 0.1, "warmdown_ratio": 0.3, "final_lr_frac": 0.05, "num_iterations": 50}
    user |= {"total_batch_size": 256, "device_batch_size": 4, "device_type": "", "run": "dummy"}
    meta = {"step": 1, "val_bpb": 1.0, "model_config": sizes, "user_config": {**user, **settings}}
    model = make_upstream(meta)
    model.transformer.wte.to(torch.bfloat16)
    optimizers = make_optimizers(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers[0].step()
    for parameter in model.transformer.h.parameters():
        optimizers[1].state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model_000001.pt")
    torch.save([optimizer.state_dict() for optimizer in optimizers], folder / "optim_000001_rank0.pt")
    (folder / "meta_000001.json").write_text(json.dumps(meta))
    return model, list(optimizers)


def test_upstreams_checkpoint_becomes_a_run_with_its_settings(tmp_path, capsys):
    model, optimizers = write_upstream(tmp_path / "nanochat")
    convert(tmp_path / "nanochat", tmp_path / "run", None, None, None)
    found = read(tmp_path / "run", "jax", None)
    for name, parameter in model.named_parameters():
        ours = name.removeprefix("transformer.")
        assert np.array_equal(found.weights[ours], parameter.detach().float().numpy()), name
        for key, tensor in optimizers["h." in name].state[parameter].items():
            if key != "step":
                assert np.array_equal(found.optimizer[f"{ours}/{key}"], tensor.float().numpy()), (name, key)
    c = found.config
    assert (found.step, c.model.rotary_dtype, c.train.dtype) == (1, "bfloat16", "bfloat16")
    assert (c.model.depth, c.model.heads, c.model.key_value_heads, c.model.head_dim) == (11, 4, 2, 8)
    assert (c.data.sequence_len, c.data.tokenizer, c.data.bpe_vocab_size) == (16, "bpe", 300)
    assert (c.train.steps, c.batch_size, c.train.accumulation) == (50, 16, 4)
    o = c.optimizer
    assert (o.embedding_lr, o.head_lr, o.matrix_lr, o.weight_decay, o.clip_norm) == (0.3, 0.005, 0.03, 0.1, 0.5)
    assert (o.warmup_fraction, o.warmdown_fraction, o.final_lr_fraction) == (0.1, 0.3, 0.05)
    assert "tokenizer.json" in capsys.readouterr().out


def test_an_embedding_in_bfloat16_stays_so(tmp_path):
    write_upstream(tmp_path / "nanochat")
    convert(tmp_path / "nanochat", tmp_path / "run", None, "torch", None)
    convert(tmp_path / "run", tmp_path / "back", None, "nanochat", None)
    for name, tensor in load(tmp_path / "nanochat", "model_000001.pt").items():
        found = load(tmp_path / "back", "model_000001.pt")[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)
    for before, after in zip(
        load(tmp_path / "nanochat", "optim_000001_rank0.pt"),
        load(tmp_path / "back", "optim_000001_rank0.pt"),
        strict=True,
    ):
        assert [group["params"] for group in before["param_groups"]] == [g["params"] for g in after["param_groups"]]
        for index, state in before["state"].items():
            for key, tensor in state.items():
                assert torch.equal(tensor.float(), after["state"][index][key].float())


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_iterations": -1, "target_flops": -1.0, "target_param_data_ratio": 20}, None),
        ({"num_iterations": -1, "target_flops": 1e9, "target_param_data_ratio": 20}, None),
        ({"num_iterations": 9, "target_flops": 1e9}, 9),
    ],
)
def test_the_horizon_is_the_first_that_upstream_would_take(tmp_path, settings, steps):
    model, _ = write_upstream(tmp_path / "nanochat", **settings)
    parameters = sum(p.numel() for p in model.parameters())
    blocks = parameters - model.transformer.wte.weight.numel()
    flops = 6 * blocks + 12 * 11 * 4 * 8 * 16  # upstream's estimate_flops
    expected = steps or (round(1e9 / (flops * 256)) if settings["target_flops"] > 0 else 20 * parameters // 256)
    convert(tmp_path / "nanochat", tmp_path / "run", None, "torch", None)
    assert read(tmp_path / "run", "torch", None).config.train.steps == expected


def test_files_of_several_ranks_are_joined(tmp_path):
    snapshot = make_snapshot(DEEP, 7)
    folder = written(tmp_path / "nanochat", snapshot, "nanochat")
    model = make_upstream(json.loads((folder / "meta_000007.json").read_text()))
    matrices = dict(model.transformer.h.named_parameters())
    # As DistMuon groups and divides them: by shape, in rounds of one matrix a rank.
    shapes = sorted({tuple(p.shape) for p in matrices.values()})
    groups = [[name for name, p in matrices.items() if tuple(p.shape) == shape] for shape in shapes]
    starts = np.cumsum([0, *map(len, groups)])
    param_groups = [
        {"params": list(range(start, start + len(group))), "zero_buffer": torch.zeros(shape)}
        for start, group, shape in zip(starts[:-1].tolist(), groups, shapes, strict=True)
    ]
    (adamw, _), world = load(folder, "optim_000007_rank0.pt"), 3
    for name in ("lm_head.weight", "wte.weight"):  # 256 rows are no multiple of three
        snapshot.optimizer[f"{name}/exp_avg"] = snapshot.optimizer[f"{name}/exp_avg"][:255]
    for rank in range(world):
        moments = {
            index: {
                "step": torch.tensor(7),
                **{key: state[key].tensor_split(world)[rank] for key in ("exp_avg", "exp_avg_sq")},
            }
            for index, state in adamw["state"].items()
        }
        buffers = {
            param_groups[g]["params"][i]: {
                "momentum_buffer": torch.tensor(snapshot.optimizer[f"h.{name}/momentum_buffer"])
            }
            for g, group in enumerate(groups)
            for i, name in enumerate(group)
            if i % world == rank
        }
        states = [{"state": moments, "param_groups": []}, {"state": buffers, "param_groups": param_groups}]
        torch.save(states, folder / f"optim_000007_rank{rank}.pt")
    convert(folder, tmp_path / "run", None, "torch", None)
    assert_same(read(tmp_path / "run", "torch", None), make_snapshot(DEEP, 7))
    (folder / "optim_000007_rank1.pt").unlink()
    with pytest.raises(UserError, match=r"no optim_000007_rank1\.pt"):
        convert(folder, tmp_path / "again", None, "torch", None)


def test_without_optimizer_files_the_weights_start_a_training(tmp_path):
    write_upstream(tmp_path / "nanochat")
    (tmp_path / "nanochat/optim_000001_rank0.pt").unlink()
    convert(tmp_path / "nanochat", tmp_path / "run", None, "torch", None)
    assert checkpoint_steps(tmp_path / "run") == [0]


def test_a_run_of_other_optimizers_is_written_without_their_state(tmp_path):
    config = replace(GPT, optimizer=OptimizerConfig(optimizer="adamw"))
    folder = written(tmp_path / "nanochat", make_snapshot(config, 7), "nanochat")
    assert sorted(path.name for path in folder.iterdir()) == ["meta_000007.json", "model_000007.pt"]


def test_a_tokenizer_goes_along(tmp_path):
    bpe = train_bpe(["some words and more words"] * 3, 260)
    bpe.save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text()
    data = replace(GPT.data, tokenizer="bpe", bpe_vocab_size=bpe.vocab_size)
    config = replace(GPT, data=data, model=replace(GPT.model, vocab_size=bpe.vocab_size))
    snapshot = make_snapshot(config, 7)._replace(tokenizer=text)
    convert(written(tmp_path / "source", snapshot, "jax"), tmp_path / "nanochat", None, "nanochat", None)
    convert(tmp_path / "nanochat", tmp_path / "run", None, "torch", None)
    assert (tmp_path / "run/tokenizer.json").read_text() == text
    assert_same(read(tmp_path / "run", "torch", None), snapshot)


def test_the_step_asked_for_is_taken(tmp_path):
    folder = written(tmp_path / "nanochat", make_snapshot(GPT, 7), "nanochat")
    for path in written(tmp_path / "older", make_snapshot(GPT, 3), "nanochat").iterdir():
        path.rename(folder / path.name)
    (folder / "model_000009_backup.pt").write_bytes(b"")
    convert(folder, tmp_path / "newest", None, "torch", None)
    convert(folder, tmp_path / "three", None, "torch", 3)
    assert (checkpoint_steps(tmp_path / "newest"), checkpoint_steps(tmp_path / "three")) == ([7], [3])
    with pytest.raises(UserError, match="no checkpoint of step 4; there are 3, 7"):
        convert(folder, tmp_path / "four", None, "torch", 4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("softcap", 30.0, "softcap 15"), ("rope_theta", 5000.0, "rope_theta 10000"), (None, None, "float64")],
)
def test_what_upstreams_code_cannot_hold_is_refused(tmp_path, field, value, message):
    if field:
        config = replace(GPT, model=replace(GPT.model, **{field: value}))
    else:
        config = replace(GPT, train=replace(GPT.train, dtype="float64"))
    source = written(tmp_path / "source", make_snapshot(config, 7), "torch")
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / "out", None, "nanochat", None)
    assert not (tmp_path / "out").exists()


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["model_000001.pt", "optim_000001_rank0.pt"])
@pytest.mark.parametrize("wrap", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, name, wrap):
    write_upstream(tmp_path / "nanochat")
    bomb = {"lm_head.weight": Bomb(tmp_path / "exploded")}
    if wrap == "torch":
        torch.save(bomb, tmp_path / "nanochat" / name)
    else:
        (tmp_path / "nanochat" / name).write_bytes(pickle.dumps(bomb))
    assert_refused(tmp_path, f"{name} .*would run code|{name} cannot be read")
    assert not (tmp_path / "exploded").exists()


def assert_refused(tmp_path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path / "nanochat", tmp_path / "out", None, "torch", None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "feature"),
    [
        (["value_embeds.1.weight", "transformer.h.0.attn.ve_gate.weight"], "value embeddings.*gates on value emb"),
        (["resid_lambdas"], "per-layer scalars"),
        (["x0_lambdas"], "per-layer scalars"),
        (["smear_gate.weight", "smear_lambda"], "smear"),
        (["backout_lambda"], "backout"),
        (["transformer.h.0.attn_norm.weight"], "norms with parameters"),
        (["lm_head.bias"], "biases"),
        (["transformer.h.0.attn.c_proj_scalar"], "'transformer.h.0.attn.c_proj_scalar' does not belong"),
    ],
)
def test_a_newer_architecture_is_refused_by_the_name_of_what_is_new(tmp_path, names, feature):
    write_upstream(tmp_path / "nanochat")
    edit_torch(tmp_path / "nanochat/model_000001.pt", lambda s: s.update({name: torch.ones(2, 2) for name in names}))
    assert_refused(tmp_path, feature)


def edit_torch(path: Path, change) -> None:
    values = torch.load(path, weights_only=True)
    change(values)
    torch.save(values, path)


def edit_meta(folder: Path, change) -> None:
    meta = json.loads((folder / "meta_000001.json").read_text())
    change(meta)
    (folder / "meta_000001.json").write_text(json.dumps(meta))


MODEL, OPTIM = "model_000001.pt", "optim_000001_rank0.pt"
DAMAGES = {
    "missing": (lambda d: edit_torch(d / MODEL, lambda s: s.pop("lm_head.weight")), "'lm_head.weight' is missing"),
    "renamed": (
        lambda d: edit_torch(d / MODEL, lambda s: s.update({"transformer.h.0.mlp.c_gc.weight": torch.ones(1)})),
        "'transformer.h.0.mlp.c_gc.weight' does not belong",
    ),
    "transposed": (
        lambda d: edit_torch(d / MODEL, lambda s: s.update({"lm_head.weight": s["lm_head.weight"].T.contiguous()})),
        r"lm_head.weight has shape \(32, 300\)",
    ),
    "integer": (
        lambda d: edit_torch(d / MODEL, lambda s: s.update({"lm_head.weight": s["lm_head.weight"].int()})),
        "lm_head.weight has dtype int32",
    ),
    "infinite": (
        lambda d: edit_torch(d / MODEL, lambda s: s["lm_head.weight"].fill_(math.inf)),
        "lm_head.weight is not finite",
    ),
    "not a state_dict": (lambda d: torch.save([1, 2], d / MODEL), "holds no state_dict"),
    "truncated": (lambda d: (d / MODEL).write_bytes((d / MODEL).read_bytes()[:2000]), f"{MODEL} "),
    "empty": (lambda d: (d / MODEL).write_bytes(b""), f"{MODEL} "),
    "no meta": (lambda d: (d / "meta_000001.json").unlink(), "no meta_000001.json"),
    "torn meta": (lambda d: (d / "meta_000001.json").write_text("{"), "meta_000001.json cannot be read"),
    "meta without sizes": (lambda d: edit_meta(d, lambda m: m["model_config"].pop("n_head")), "no model_config"),
    "sizes of other kinds": (lambda d: edit_meta(d, lambda m: m["model_config"].update(n_head="4")), "counts"),
    "heads that do not divide": (lambda d: edit_meta(d, lambda m: m["model_config"].update(n_head=5)), "meta_000001"),
    "sliding windows": (
        lambda d: edit_meta(d, lambda m: m["model_config"].update(window_pattern="SSSL")),
        r"sliding windows \(SSSL\)",
    ),
    "unknown setting": (lambda d: edit_meta(d, lambda m: m["model_config"].update(n_experts=8)), "sets n_experts"),
    "rate out of bounds": (lambda d: edit_meta(d, lambda m: m["user_config"].update(matrix_lr=-1)), "matrix-lr is -1"),
    "rate of another kind": (lambda d: edit_meta(d, lambda m: m["user_config"].update(matrix_lr="a")), "meta_000001"),
    "one optimizer": (lambda d: edit_torch(d / OPTIM, lambda s: s.pop()), "holds no list of AdamW's and Muon's"),
    "newer optimizer": (
        lambda d: torch.save({"state": {}, "param_groups": []}, d / OPTIM),
        "holds no list of AdamW's and Muon's",
    ),
    "missing moment": (lambda d: edit_torch(d / OPTIM, lambda s: s[0]["state"][0].pop("exp_avg")), "'exp_avg'"),
    "missing buffer": (lambda d: edit_torch(d / OPTIM, lambda s: s[1]["state"].pop(5)), f"{OPTIM}.*5"),
    "missing group": (lambda d: edit_torch(d / OPTIM, lambda s: s[1]["param_groups"].pop()), "momentum_buffer' is mis"),
    "short group": (
        lambda d: edit_torch(d / OPTIM, lambda s: s[1]["param_groups"][0]["params"].pop()),
        "Muon has .* matrices like",
    ),
    "another step": (
        lambda d: edit_torch(d / OPTIM, lambda s: s[0]["state"][1].update(step=torch.tensor(5.0))),
        "counted 5 steps of wte.weight at step 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_ends_in_one_line_that_says_what(tmp_path, damage):
    write_upstream(tmp_path / "nanochat")
    spoil, message = DAMAGES[damage]
    spoil(tmp_path / "nanochat")
    assert_refused(tmp_path, message)


def test_the_model_knows_every_matrix_that_muon_trains():
    names = [name for name in optimizer_shapes_of(DEEP) if name.endswith("momentum_buffer")]
    expected = [f"h.{n}.{m}.{p}.weight/momentum_buffer" for n in range(11) for m in BLOCK for p in BLOCK[m]]
    assert names == expected
