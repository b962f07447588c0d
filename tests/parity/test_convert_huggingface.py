import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from parity.convert import convert
from tests.helpers.snapshots import CONFIGS, GPT, assert_same, make_snapshot, read, written
from twinstep.config import DeviceConfig, OutputConfig, to_dict
from twinstep.errors import UserError
from twinstep.presets import DEFAULTS
from twinstep.pretrained.safetensors_file import WEIGHTS


def test_weights_go_to_hugging_face_and_back_bit_for_bit(tmp_path):
    snapshot = make_snapshot(GPT, 7)
    convert(written(tmp_path / "source", snapshot, "torch"), tmp_path / "hf", None, "hf", None)
    convert(tmp_path / "hf", tmp_path / "back", None, "torch", None)
    found = read(tmp_path / "back", "torch", None)
    assert (found.step, found.optimizer) == (0, None)
    assert_same(found, snapshot, optimizer=False)
    assert found.config.data == snapshot.config.data  # of the text: tokenizer and length
    assert found.config.optimizer == DEFAULTS["gpt"].optimizer  # weights alone start a run of their own


@pytest.mark.parametrize("name", ["gpt", "gpt-float64"])
@pytest.mark.parametrize("rotary_dtype", ["float32", "bfloat16"])
def test_a_config_holds_the_model_and_nothing_of_the_run(tmp_path, name, rotary_dtype):
    config = CONFIGS[name]
    config = replace(config, model=replace(config.model, rotary_dtype=rotary_dtype))
    snapshot = make_snapshot(config, 7)
    folder = written(tmp_path / "hf", snapshot, "hf")
    values = json.loads((folder / "config.json").read_text())
    assert values.get("twinstep") == (None if rotary_dtype == "float32" else {"rotary_dtype": "bfloat16"})
    assert not {"steps", "optimizer", "train", "out_dir", "data", "seed"} & set(values)
    found = read(folder, "hf", None)
    assert_same(found, snapshot, optimizer=False)
    assert found.config.param_dtype == config.param_dtype


def test_an_older_export_with_the_configuration_of_its_run_is_read(tmp_path):
    snapshot = make_snapshot(replace(GPT, model=replace(GPT.model, rotary_dtype="bfloat16")), 7)
    folder = written(tmp_path / "hf", snapshot, "hf")
    edit_config(folder, twinstep=to_dict(snapshot.config))
    found = read(folder, "hf", None)
    assert_same(found, snapshot, optimizer=False)
    assert found.config.train == snapshot.config.train


@pytest.mark.parametrize("format", ["hf", "safetensors", "nanochat"])
def test_no_export_names_a_folder_of_this_machine(tmp_path, format):
    data = replace(GPT.data, data="/home/me/texts", cache_dir="/home/me/cache")
    output = OutputConfig(out_dir="/home/me/runs/gpt")
    config = replace(GPT, data=data, output=output, devices=DeviceConfig(coordinator="my-host:1234"))
    folder = written(tmp_path / format, make_snapshot(config, 7), format)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert b"/home/me" not in content, path.name
        assert b"my-host" not in content, path.name
    assert read(folder, format, None).config.model == config.model


def test_the_epsilon_that_is_written_is_what_both_frameworks_compute_with():
    import jax_impl.models.gpt
    import torch_ref.models.gpt
    from twinstep.pretrained.huggingface import RMS_NORM_EPS

    assert RMS_NORM_EPS == jax_impl.models.gpt.RMS_NORM_EPS == torch_ref.models.gpt.RMS_NORM_EPS


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_from_config(folder, *names):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({n: v for n, v in values.items() if n not in names}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; only 'nanochat'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; only 'relu2'"),
        ({"attention_bias": True}, "attention_bias True; only False"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True; only False"),
        ({"intermediate_size": 100}, "intermediate_size 100; only 128"),
        ({"head_dim": 16}, "head_dim 64; only 32"),
        ({"num_attention_heads": 3}, "head_dim"),
        ({"num_key_value_heads": 3}, "config.json: --kv-heads 3"),
        ({"hidden_size": "32"}, "hidden_size '32', which is no count"),
        ({"vocab_size": None}, "vocab_size None, which is no count"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}}, "rope_type 'yarn'; only 'default'"),
        ({"final_logit_softcapping": None}, "config.json: "),
        ({"twinstep": {"rotary_dtype": "int8"}}, "rotary_dtype 'int8'; it must be one of float32"),
        ({"vocab_size": 512}, r"wte.weight has shape \(256, 32\)"),
        ({"num_hidden_layers": 3}, "'model.layers.2.mlp.fc1.weight' is missing"),
        ({"num_hidden_layers": 1}, "'model.layers.1.mlp.fc1.weight' does not belong"),
    ],
)
def test_a_model_that_computes_otherwise_is_refused_by_its_setting(tmp_path, values, message):
    folder = written(tmp_path / "hf", make_snapshot(GPT, 7), "hf")
    edit_config(folder, **values)
    with pytest.raises(UserError, match=message) as caught:
        convert(folder, tmp_path / "out", None, None, None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_a_config_leaves_out_is_what_transformers_takes(tmp_path, capsys):
    folder = written(tmp_path / "hf", make_snapshot(GPT, 7), "hf")
    capsys.readouterr()
    drop_from_config(folder, "twinstep", "head_dim", "hidden_act", "attention_bias", "rms_norm_eps", "rope_parameters")
    edit_config(folder, rope_theta=5000.0)
    found = read(folder, "hf", None)
    assert found.config.model == replace(GPT.model, rope_theta=5000.0)
    assert "rms_norm_eps 1e-06" in capsys.readouterr().out


def test_a_model_in_bfloat16_widens_exactly(tmp_path):
    snapshot = make_snapshot(GPT, 7)
    folder = written(tmp_path / "hf", snapshot, "hf")
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    found = read(folder, "hf", None)
    for name, array in snapshot.weights.items():
        assert np.array_equal(found.weights[name], torch.tensor(array).bfloat16().float().numpy())


def test_a_rotary_table_that_is_rounded_otherwise_is_said(tmp_path, capsys):
    config = replace(GPT, model=replace(GPT.model, rotary_dtype="bfloat16"))
    written(tmp_path / "hf", make_snapshot(config, 7), "hf")
    assert "note: transformers" in capsys.readouterr().out
