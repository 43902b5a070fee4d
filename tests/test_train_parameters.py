"""Parameters in files: they come back as they were, and nothing else does."""

import dataclasses
import importlib
import json
import struct
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from jaxnn import train
from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer

MODELS = (mlp, cnn, rnn, autoencoder, transformer)
CONFIG = mlp.Config(sizes=(3, 4, 2), l2=0.1)


@pytest.fixture
def saved(tmp_path):
    params = mlp.init_params(jax.random.key(0), CONFIG)
    notes = {"seed": 5, "vocabulary": "ab\0é\ud800", "options": {"epochs": 3, "hidden": [4]}}
    return train.save_params(
        tmp_path / "params", params, model=mlp, config=CONFIG, notes=notes
    ), params


def rewritten(path, tensors=None, **texts):
    """The file with other tensors, or other texts in its header; None leaves a text out."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = {**header.pop("__metadata__"), **texts}
    metadata = {name: text for name, text in metadata.items() if text is not None}
    if tensors is None:
        tensors = {
            name: np.frombuffer(content[start:][slice(*one["data_offsets"])], "f4").reshape(
                one["shape"]
            )
            for name, one in header.items()
        }
    path.write_bytes(save(tensors, metadata=metadata))


def arrays(params):
    return {f"layers[{i}].{n}": np.asarray(x) for i, p in enumerate(params.layers)
            for n, x in p._asdict().items()}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "config"),
    [(model, config) for model in MODELS for config in model.EXAMPLE_CONFIGS],
    ids=lambda value: value.__name__.split(".")[-1] if hasattr(value, "__name__") else "",
)
def test_parameters_come_back_bit_for_bit_and_need_nothing_else(model, config, tmp_path):
    shapes = jax.eval_shape(lambda key: model.init_params(key, config), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    path = train.save_params(tmp_path / "p", params, model=model, config=config)
    loaded = train.load_params(path)
    assert (loaded.model, loaded.config, loaded.notes) == (model, config, {})
    assert type(loaded.config) is type(config)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_a_file_says_what_it_is_of(saved):
    path, params = saved
    about = train.read_about(path)
    assert about.model == "jaxnn.models.mlp"
    assert about.config == {**dataclasses.asdict(CONFIG), "sizes": [3, 4, 2]}
    assert about.notes["vocabulary"] == "ab\0é\ud800"
    assert about.versions["jax"] == jax.__version__
    assert train.load_params(path, mlp, CONFIG).notes == about.notes
    np.testing.assert_array_equal(
        train.load_params(str(path)).params.layers[1].w, params.layers[1].w
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_floating_numbers_keep_their_width(dtype, tmp_path):
    params = mlp.init_params(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda x: np.asarray(x).astype(jnp.dtype(dtype)), params)
    with jax.enable_x64(dtype == "float64"):
        path = train.save_params(tmp_path / "p", params, model=mlp, config=CONFIG)
        assert {str(x.dtype) for x in jax.tree.leaves(train.load_params(path).params)} == {dtype}
    if dtype == "float64":
        with pytest.raises(ValueError, match="float64, which JAX rounds unless jax_enable_x64"):
            train.load_params(path)
        with pytest.raises(ValueError, match="float64, which JAX rounds unless jax_enable_x64"):
            train.save_params(path, params, model=mlp, config=CONFIG)


class Size(NamedTuple):
    width: int
    rates: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Config:
    sizes: tuple[Size, ...] = (Size(2),)
    other: Size | None = None
    word: str = "a"


def own_model(**more):
    def init_params(key, config):
        return {"w": jnp.ones((2, 3)), "count": jnp.zeros((), jnp.int32), "on": jnp.array(True)}

    return SimpleNamespace(__name__="mine", init_params=init_params, **more)


def test_a_model_of_ones_own(tmp_path):
    model = own_model(Config=Config)
    params = model.init_params(None, None)
    config = Config((Size(3, (0.5, 1.0)), Size(4)), Size(5))
    path = train.save_params(tmp_path / "p", params, model=model, config=config)
    loaded = train.load_params(path, model)
    assert loaded.config == config
    assert loaded.params["count"].shape == ()
    assert loaded.params["on"].dtype == bool
    with pytest.raises(ValueError, match=r"the model 'mine', none of jaxnn.models; pass the mod"):
        train.load_params(path)
    with pytest.raises(ValueError, match=r"other is {'width': 5.*in the file, None here; word is"):
        train.load_params(path, model, Config(config.sizes, word="b"))


@dataclasses.dataclass(frozen=True)
class Lists:
    names: list[str]
    pairs: tuple[list[int], ...] = ()
    sizes: list[Size] | None = None
    rows: list[tuple[Size, ...]] = dataclasses.field(default_factory=list)
    bare: list = dataclasses.field(default_factory=list)
    more: Sequence[Size] = ()


def test_lists_are_lists_again_where_the_configuration_says_so(tmp_path):
    model = own_model(Config=Lists)
    config = Lists(["a"], ([1, 2], [3]), [Size(1, (0.5,))], [(Size(2),)], [[1]], (Size(3),))
    path = train.save_params(tmp_path / "p", model.init_params(0, 0), model=model, config=config)
    assert train.load_params(path, model).config == config


def test_types_that_only_type_checkers_know_are_no_matter_but_for_objects(tmp_path):
    class Checked(NamedTuple):
        sizes: "Unknown[int]" = (3,)  # noqa: F821
        other: Any = None

    model = own_model(Config=Checked)
    params = model.init_params(None, None)
    path = train.save_params(tmp_path / "p", params, model=model, config=Checked((3, 4)))
    assert train.load_params(path, model).config == Checked((3, 4))
    train.save_params(path, params, model=model, config=Checked(other={"width": 3}))
    with pytest.raises(ValueError, match=r"of width the type has a name .* import it for the pro"):
        train.load_params(path, model)


@pytest.mark.parametrize("config", [None, {"width": 3, "deep": {"a": [1]}}, (3, 4), Size(3)])
def test_a_model_without_a_config_is_given_it(config, tmp_path):
    model = own_model()
    params = model.init_params(None, None)
    path = train.save_params(tmp_path / "p", params, model=model, config=config)
    assert train.load_params(path, model, config).config == config
    if config is None:
        assert train.load_params(path, model).config is None
        return
    with pytest.raises(ValueError, match="has no Config to take them; pass the configuration"):
        train.load_params(path, model)
    with pytest.raises(ValueError, match="of another configuration: "):
        train.load_params(path, model, {"width": 4})


def test_notes_are_what_json_has(saved):
    path, params = saved
    notes = {
        "numbers": (np.float32(0.5), jnp.arange(2), np.array([[True]]), jnp.bfloat16(2)),
        "where": path,
        "config": CONFIG,
        "not finite": float("inf"),
    }
    train.save_params(path, params, model=mlp, config=CONFIG, notes=notes)
    read = train.read_about(path).notes
    assert read["numbers"] == [0.5, [0, 1], [[True]], 2.0]
    assert read["where"] == str(path)
    assert read["config"]["sizes"] == [3, 4, 2]
    assert read["not finite"] == float("inf")


def cyclic():
    notes = {}
    notes["self"] = notes
    return notes


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"notes": {"f": len}}, TypeError, r"notes\['f'\] is <built-in .* it must be what JSON"),
        ({"notes": {"a": [{1: 2}]}}, TypeError, r"notes\['a'\]\[0\] is \{1: 2\}"),
        ({"notes": {"z": np.array(1j)}}, TypeError, "must be what JSON has"),
        ({"notes": {"key": jax.random.key(0)}}, TypeError, "must be what JSON has"),
        ({"notes": [1]}, TypeError, "notes"),
        ({"notes": cyclic()}, ValueError, "too deep"),
        ({"notes": {"page": "x" * 2**23}}, ValueError, "have .* characters; at most"),
        ({"config": mlp.Config(sizes=(3, 5, 2))}, ValueError, r"params .*\[0\].w has shape \(3, 4"),
        ({"config": None}, TypeError, "config is None"),
        ({"model": cnn}, TypeError, "config is Config"),
        ({"path": 3}, TypeError, "path is 3"),
        ({"params": (1.0,)}, ValueError, "missing, needed"),
        ({"params": None}, ValueError, "missing, needed"),
        ({"params": {"a": "text"}}, TypeError, "dtype"),
        ({"params": jax.random.key(0)}, TypeError, "dtype key<fry>; a parameter must be of numb"),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused_and_changes_nothing(saved, change, error, words):
    path, params = saved
    before = path.read_bytes()
    arguments = {"path": path, "params": params, "model": mlp, "config": CONFIG} | change
    with pytest.raises(error, match=words):
        train.save_params(arguments.pop("path"), arguments.pop("params"), **arguments)
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_that_are_not_finite_are_neither_saved_nor_loaded(saved, value, dtype):
    path, params = saved
    before = path.read_bytes()
    last = params.layers[1]
    broken = mlp.Params((params.layers[0], last._replace(w=last.w.at[1, 0].set(value))))
    broken = jax.tree.map(lambda x: x.astype(dtype), broken)
    words = r"numbers that are not finite: layers\[1\].w in 1 of 8; "
    with pytest.raises(ValueError, match=rf"params has {words}they are of a run that diverged"):
        train.save_params(path, broken, model=mlp, config=CONFIG)
    assert path.read_bytes() == before
    rewritten(path, arrays(broken))
    with pytest.raises(ValueError, match=words):
        train.load_params(path)


def test_parameters_under_jit_are_refused(saved):
    path, params = saved
    with pytest.raises(TypeError, match="is traced by JAX"):
        jax.jit(lambda p: train.save_params(path, p, model=mlp, config=CONFIG) and 0)(params)


def test_another_model_or_configuration_is_refused_by_name(saved):
    path, _ = saved
    other = mlp.Config(sizes=(3, 5, 2), activation="tanh", l2=0.1)
    words = r"activation is 'relu' in the file, 'tanh' here; sizes is \[3, 4, 2\] in the file, \[3,"
    with pytest.raises(ValueError, match=words):
        train.load_params(path, mlp, other)
    with pytest.raises(ValueError, match=r"of the model jaxnn.models.mlp, not of jaxnn.models.cnn"):
        train.load_params(path, cnn)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("layers[0].w", lambda w: w.astype(np.int32), "has dtype int32, needed float32"),
        ("layers[0].w", lambda w: w.astype(np.int64), "has dtype int64, needed float32"),
        ("layers[0].w", lambda w: w > 0, "has dtype bool, needed float32"),
        ("layers[0].w", lambda w: w.astype(np.complex64), "has dtype complex64, needed float32"),
        ("layers[0].w", lambda w: w.astype(np.float16), "w has dtype float16 .*needed one for"),
        ("layers[0].w", lambda w: w[:2], r"has shape \(2, 4\), needed \(3, 4\)"),
        ("layers[0].w", lambda w: w.T, r"has shape \(4, 3\), needed \(3, 4\)"),
        ("layers[0].w", lambda w: None, r"layers\[0\].w is missing, needed \(3, 4\)"),
        ("layers[2].w", lambda w: np.ones(3, np.float32), r"layers\[2\].w' is none of the model's"),
        ("a\0\n" * 999, lambda w: np.ones(3, np.float32), r"'a.x00.* is none of the model's"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(saved, name, change, words):
    path, params = saved
    changed = arrays(params)
    changed[name] = change(changed.get(name))
    rewritten(path, {n: np.ascontiguousarray(x) for n, x in changed.items() if x is not None})
    with pytest.raises(ValueError, match=f"does not fit its configuration: .*{words}"):
        train.load_params(path)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"format": "2"}, "is of format 2; this version of jaxnn reads format 1: use the version"),
        ({"format": "9" * 10**5}, "is of format 999"),
        ({"format": None}, "no model and configuration in its header"),
        ({"format": "\u0661"}, "is of format"),
        ({"config": None}, "no model and configuration in its header"),
        ({"config": "{"}, "config in its header, is not JSON"),
        ({"config": "[]"}, r"has config \[\] in its header"),
        ({"config": "[" * 10**5}, "too deep"),
        ({"notes": '{"a":' * 10**5}, "too deep"),
        ({"notes": "9" * 5000}, "is not JSON"),
        ({"notes": "3"}, "has notes 3"),
        ({"model": "1"}, "has model 1"),
        ({"model": '"os"'}, "'os', none of jaxnn.models"),
        ({"model": '"jaxnn.models.generate"'}, "none of jaxnn.models"),
        ({"model": '"jaxnn.models.absent"'}, "none of jaxnn.models"),
        ({"model": '"jaxnn.models..mlp"'}, "none of jaxnn.models"),
        ({"model": '"jaxnn.models.mlp\\n"'}, "none of jaxnn.models"),
        ({"model": '"jaxnn.models.rnn"'}, "jaxnn.models.rnn does not take .sizes, "),
        ({"config": '{"sizes": [3, 4, 2], "colour": 3}'}, "colour is not one of sizes, "),
        ({"config": '{"sizes": [3, -4]}'}, "does not take .*-4"),
        ({"config": '{"sizes": [3, 1e999]}'}, "does not take .*inf"),
        ({"config": '{"sizes": [3, 4.0, 2]}'}, "does not take .*4.0"),
        ({"config": '{"sizes": null}'}, "does not take .*None"),
        ({"config": '{"sizes": {"a": 1}}'}, "does not take "),
        ({"config": '{"sizes": [3, 2147483647, 2147483647, 2]}'}, "does not fit its config"),
        ({"config": json.dumps({"sizes": [4] * 10**6})}, "does not take .*at most 500"),
        ({"versions": "[1]"}, r"has versions \[1\]"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_header_that_is_wrong_is_refused(saved, texts, words):
    path, _ = saved
    rewritten(path, **texts)
    with pytest.raises(ValueError, match=words):
        train.load_params(path)


def test_no_module_that_a_file_names_is_imported_but_a_model(saved, tmp_path, monkeypatch):
    path, _ = saved
    (tmp_path / "evil.py").write_text("def init_params(): ...\nloss = Config = init_params")
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(path, model='"evil"')
    with pytest.raises(ValueError, match=r"none of jaxnn.models"):
        train.load_params(path)
    assert "evil" not in sys.modules


def test_settings_that_an_older_version_did_not_have_are_its_defaults(saved):
    path, _ = saved
    rewritten(path, config='{"sizes": [3, 4, 2], "l2": 0.1}')
    assert train.load_params(path).config == CONFIG


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("rnn", '{"layers": 1000000}'),
        ("rnn", '{"hidden": 1000000, "width": 1000000, "layers": 9}'),
        ("cnn", '{"blocks": 1000000}'),
        ("cnn", '{"shape": [2147483647, 2147483647, 2147483647], "channels": [2147483647]}'),
        ("cnn", json.dumps({"channels": [8] * 10**5})),
        ("transformer", '{"layers": 2147483647, "width": 2147483647, "heads": 1}'),
        ("transformer", '{"rotary_scaling": {"factor": 2, "colour": 1}}'),
        ("autoencoder", json.dumps({"sizes": [8] * 10**5})),
    ],
)  # fmt: skip
def test_an_absurd_configuration_is_refused_at_once(saved, model, config):
    path, _ = saved
    rewritten(path, model=f'"jaxnn.models.{model}"', config=config)
    with pytest.raises(ValueError, match=r"does not (take|fit)"):
        train.load_params(path)


def test_a_file_that_is_torn_is_refused(saved):
    path, _ = saved
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for end in (0, 1, 7, 8, 9, start // 2, start - 1, start, start + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"cannot be read|its header"):
            train.load_params(path)
    broken = {
        "longer": whole + b"\0",
        "text": b"not tensors",
        "zeros": bytes(1000),
        "a large header": struct.pack("<Q", 2**40) + whole[8:],
        "deep": struct.pack("<Q", 10**6) + b"[" * 10**6,
        "gzip": b"\x1f\x8b" + whole,
        "pickle": b"\x80\x04]q\0.",
    }
    for content in broken.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"must be a file that save_params wrote"):
            train.read_about(path)
    path.write_bytes(save({"w": np.ones(2)}))
    with pytest.raises(ValueError, match="no model and configuration in its header"):
        train.load_params(path)


def test_what_is_no_file_is_refused(tmp_path):
    for name in ("absent", ".", "/dev/zero", "/proc/self"):
        for read in (train.load_params, train.read_about):
            with pytest.raises(ValueError, match="is not a file"):
                read(tmp_path / name)


def test_safetensors_is_needed_only_to_save_and_load(saved, monkeypatch):
    path, params = saved
    real = importlib.import_module

    def absent(name, *more):
        if name.startswith("safetensors"):
            raise ModuleNotFoundError(name="safetensors")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", absent)
    words = r'safetensors is not installed: pip install "jaxnn\[train\]"'
    with pytest.raises(ModuleNotFoundError, match=words):
        train.load_params(path)
    with pytest.raises(ModuleNotFoundError, match=words):
        train.save_params(path, params, model=mlp, config=CONFIG)
