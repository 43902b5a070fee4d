"""The scripts a person runs: their results, their files, their errors."""

import io
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    autoencode,
    cli,
    digits,
    foundations,
    moons,
    numpy_net,
    residuals,
    square,
    text,
    two_layer,
)
from jaxnn import data, train
from jaxnn.models import mlp

ROOT = Path(__file__).parents[1]


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("seed", range(5))
def test_digits_reads_97_of_100_held_out_digits(seed, tmp_path, capsys):
    assert digits.main(seed=seed, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "PASS         manual_grad" in out
    accuracy = float(re.search(r"held-out accuracy ([\d.]+)%", out)[1])
    assert accuracy >= 97
    assert all(is_png(tmp_path / f"{name}.png") for name in ("curves", "confusion", "misread"))
    assert digits.main(predict=tmp_path / "params.safetensors") == 0
    assert f"held-out accuracy {accuracy:.2f}% of 360, held out by seed {seed}, the file's" in (
        capsys.readouterr().out
    )


def test_digits_by_autodiff_learns_the_same_curve(tmp_path, capsys):
    losses = []
    for gradient in ("manual", "autodiff"):
        digits.main(epochs=3, hidden=(16,), gradient=gradient, out=tmp_path)
        losses.append(re.search(r"training loss ([\d.]+)", capsys.readouterr().out)[1])
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Eighty images in MNIST's files, and twenty: a bright row tells the class."""
    folder, rng = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for name, n in (("train", 80), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = rng.integers(0, 50, (n, 28, 28), dtype=np.uint8)
        images[np.arange(n), labels, :] = 255
        header = n.to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + header + images.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + n.to_bytes(4, "big") + labels.tobytes()
        )
    return folder


def test_digits_takes_mnist_files(mnist, tmp_path, capsys):
    given = {"mnist": mnist, "hidden": (), "batch_size": 8, "augment": 0.0, "dropout": 0.0}
    assert digits.main(**given, epochs=10, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "Config(sizes=(784, 10)" in out
    assert "held-out accuracy 100.00%" in out


def test_digits_has_other_defaults_for_mnist(mnist, tmp_path, capsys):
    assert digits.main(mnist=mnist, epochs=1, batch_size=40, verify=False, out=tmp_path) == 0
    assert "Config(sizes=(784, 512, 512, 10)" in capsys.readouterr().out
    options = train.read_about(tmp_path / "params.safetensors").notes["options"]
    assert options["augment"] == 1
    assert options["dropout"] == 0.1
    cnn, usual = digits.DEFAULTS["cnn", True], digits.DEFAULTS["cnn", False]
    assert cnn.augment == 1
    assert usual.augment == 0
    assert len(cnn.channels) > len(usual.channels)


def test_images_drawn_anew_are_other_images(mnist, tmp_path, capsys):
    losses = []
    for augment in (0.0, 0.0, 1.0):
        given = {"mnist": mnist, "hidden": (), "batch_size": 40, "augment": augment}
        digits.main(**given, epochs=2, verify=False, out=tmp_path)
        losses.append(re.search(r"training loss ([\d.]+)", capsys.readouterr().out)[1])
    assert losses[0] == losses[1] != losses[2]


def test_a_wrong_gradient_is_not_trained_with(tmp_path, capsys, monkeypatch):
    right = mlp.manual_grad
    monkeypatch.setattr(mlp, "manual_grad", lambda *a: jax.tree.map(lambda d: 1.01 * d, right(*a)))
    assert digits.main(hidden=(8,), out=tmp_path) == 1
    assert "FAIL" in capsys.readouterr().out
    assert not list(tmp_path.glob("[!.]*"))
    assert digits.main(hidden=(8,), verify=False, epochs=1, out=tmp_path) == 0


def test_moons_loss_falls_below_a_twentieth(tmp_path, capsys):
    assert moons.main(out=tmp_path) == 0
    out = capsys.readouterr().out
    final = re.search(r"final loss ([\d.]+) nats after 300 epochs, falling all the way", out)
    assert float(final[1]) < 0.05
    assert "SciPy's check_grad" in out
    assert is_png(tmp_path / "moons.png")
    assert is_png(tmp_path / "relu.png")


def test_moons_program_takes_the_steps_of_the_numpy_loop():
    batch = data.two_moons(seed=7)
    config = mlp.Config(sizes=(2, 10, 2))
    optimizer = moons.optax.sgd(0.5)
    state = train.init_state(mlp, config, optimizer, jax.random.key(7))
    run = train.make_run(mlp, config, optimizer, batch, epochs=300, batch_size=100)
    layers = [(np.asarray(w, np.float64), np.asarray(b)) for w, b in state.params.layers]
    pair = np.asarray(batch.inputs), np.asarray(batch.targets)
    _, losses = numpy_net.descend(layers, [pair] * 300, learning_rate=0.5)
    np.testing.assert_allclose(run(state)[1].loss, losses, rtol=1e-3)


def test_square_fits_a_parabola(tmp_path, capsys):
    assert square.main(out=tmp_path) == 0
    final = re.search(r"jaxnn: +loss ([\d.e-]+) after 3000 epochs", capsys.readouterr().out)
    assert float(final[1]) < 2e-3
    assert is_png(tmp_path / "square.png")


def test_two_layer_prints_the_tutorials_figures(tmp_path, capsys):
    assert two_layer.main(out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "loss 35.6094379124341" in out
    assert re.search(r"w1\[2,0\] +1.5000000000 +1.5000000000", out)
    assert re.search(r"b2\[4\] +-0.3000000000 +-0.3000000000", out)
    assert (tmp_path / "table.txt").read_text() in out
    assert re.search(r"layers\[0\]\.b +float64\[4\] .* -\n", out)  # a zero gradient: blind there
    first, last = re.search(r"loss ([\d.]+) -> ([\d.]+)", out).groups()
    assert float(first) == 35.6094
    assert float(last) < 2
    assert is_png(tmp_path / "loss.png")
    assert two_layer.main(random=True, seed=3, gradient="autodiff", out=tmp_path) == 0


def test_foundations_shows_every_part(tmp_path, capsys):
    assert foundations.main(steps=20, out=tmp_path) == 0
    out = capsys.readouterr().out
    assert "refused" in out
    assert out.count("µs") == 5
    assert all(is_png(tmp_path / f"{n}.png") for n in ("ladder", "initialisation", "relu_op"))


def test_fifty_layers_explode_vanish_or_stay():
    explode, vanish, stay, fade, keep = (
        values[-1] for values in foundations.activation_scales(jax.random.key(1)).values()
    )
    assert explode > 1e40
    assert vanish < 1e-40
    assert 0.1 < stay < 10
    assert fade < 1e-6
    assert 0.01 < keep < 10


def test_relu_as_an_op_trains_like_the_models_own_gradient():
    through_op, own = foundations.train_with_op(jax.random.key(0), 30).values()
    assert own[-1] < 0.5 * own[0]
    np.testing.assert_allclose(through_op, own, rtol=1e-4)


def test_residuals_counts_what_is_kept_and_no_input(tmp_path, capsys):
    x = jnp.ones((3, 4))
    assert residuals.kept((x, jnp.arange(5)), (x, (y := x + 1), y, y > 0)) == 4 + 1
    assert residuals.main("jaxnn.ops.linear", out=tmp_path) == 0
    assert residuals.main("jaxnn.ops.activations", out=tmp_path) == 0
    assert re.search(r"dropout, rate=0.3 +1\.00 ", capsys.readouterr().out)
    assert "dropout" in (tmp_path / "table.txt").read_text()


def test_residuals_prints_each_row_when_it_is_measured(tmp_path, capsys, monkeypatch):
    printed = []

    def measure(op, static):
        printed.append(capsys.readouterr().out)
        return 1.0, 2.0

    monkeypatch.setattr(residuals, "measure", measure)
    residuals.main("jaxnn.ops.losses", out=tmp_path / "new")
    assert len(printed) > 1
    assert [out.count("\n") for out in printed] == [1] * len(printed)
    file = tmp_path / "new" / "table.txt"
    last, *wrote = capsys.readouterr().out.splitlines(keepends=True)
    assert file.read_text() == "".join([*printed, last])
    assert wrote == [f"wrote {file}\n", f"wrote {tmp_path / 'new' / 'residuals.png'}\n"]


def test_residuals_cuts_long_settings_visibly(monkeypatch):
    monkeypatch.setattr(residuals, "measure", lambda op, static: (1.0, 2.0))
    lines = list(residuals.rows("jaxnn.ops.multi_head"))
    assert len({len(line) for line in lines[1:]}) == 1
    assert any(re.search(r"^multi_head, .* \.\.\.  +1\.00", line) for line in lines)


SCRIPTS = {
    "autoencode": autoencode,
    "digits": digits,
    "text": text,
    "moons": moons,
    "square": square,
    "two_layer": two_layer,
    "foundations": foundations,
    "residuals": residuals,
}
TRAIN = ("autoencode", "digits", "moons", "square", "text", "two_layer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--batch-size", "9999"], "batch_size is 9999; it must be from 1 to"),
        (["digits", "--epochs", "0"], "--epochs is 0; it must be finite and above 0"),
        (["digits", "--epochs", str(10**20)], f"--epochs is {10**20}; it must be below 2^31"),
        (["digits", "--epochs", "2000000000"], "which is 88000000000 steps; they must be below"),
        (["digits", "--hidden", "8", "-1"], "each of sizes (64, 8, -1, 10) is -1"),
        (["digits", "--learning-rate", "nan"], "--learning-rate is nan; it must be finite"),
        (["digits", "--model", "forest"], "invalid choice"),
        (["autoencode", "--epochs", "2000000000"], "steps; they must be below 2^31"),
        (["autoencode", "--beta", "inf"], "beta is inf"),
        (["digits", "--predict", "absent.safetensors"], "absent.safetensors is not a file"),
        (["digits", "--predict", "/dev/zero"], "/dev/zero is not a file (a device)"),
        (["digits", "--predict", "a", "--resume", "b"], "exclude each other; give one"),
        (["moons", "--resume", "absent"], "absent holds no run to resume; name the folder of one"),
        (["moons", "--resume", "x" * 5000], "it must be one that can be opened (File name too"),
        (["moons", "--out", "/dev/null"], "/dev/null cannot be written to (File exists)"),
        (["moons", "--noise", "nan"], "noise is nan"),
        (["square", "--points", "0"], "n is 0"),
        (["two_layer", "--steps", str(2**31)], f"--steps is {2**31}; it must be below 2^31"),
        (["text", "--temperature", "inf"], "--temperature is inf; it must be finite"),
        (["digits", "--mnist", "absent"], "absent is not a folder"),
        (["digits", "--warm-up", "1"], "--warm-up is 1.0; it must be at least 0 and below 1"),
        (["digits", "--augment", "nan"], "--augment is nan; it must be at least 0 and below 10"),
        (["moons", "--points", "1"], "n is 1"),
        (["moons", "--seed", "-1"], "--seed is -1; it must be an integer of at least 0"),
        (["residuals", "--target", "nope"], "nope"),
    ],
)
def test_a_mistake_on_the_command_line_gets_a_message_and_exit_status_2(
    arguments, message, command
):
    name, *options = arguments
    status, printed = command(SCRIPTS[name].main, *options)
    assert status == 2
    assert message in printed.err


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"residuals"}))
def test_help(name, command):
    status, printed = command(SCRIPTS[name].main, "--help")
    assert status == 0
    assert "--seed" in printed.out
    assert "--out" in printed.out
    assert "{None}" not in printed.out
    assert ("--resume PATH" in printed.out) == (name in TRAIN)
    assert ("--no-verify" in printed.out) == (name in TRAIN)


def test_a_script_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.digits", "--epochs", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: --epochs is 0; it must be finite and above 0\n"


@pytest.mark.parametrize(
    ("epochs", "at_once", "expected"),
    [(40, 1, 1), (300, 1000, 300), (3000, 1000, 1000), (7, 3, 1), (12, 5, 4), (10**12, 5, 5)],
)
def test_epochs_are_split_into_equal_calls(epochs, at_once, expected):
    assert cli.split(epochs, at_once) == expected
    with pytest.raises(ValueError, match="epochs is 0"):
        cli.split(0, at_once)


def test_what_cannot_be_written_is_named(command):
    def full() -> int:
        raise OSError(28, "No space left on device", "curves.png")

    status, printed = command(full)
    assert status == 2
    assert printed.err == "error: [Errno 28] No space left on device: 'curves.png'\n"


def test_every_file_that_a_script_writes_goes_where_its_run_goes():
    text = "".join(path.read_text() for path in (ROOT / "experiments").glob("*.py"))
    written = {*re.findall(r'\bfolder / "([^"]+)"', text)}
    assert written == set(cli.DRAWN)


def test_a_character_that_the_terminal_has_not_is_shown_by_its_number(command, monkeypatch):
    def main() -> int:
        print("π ≈ 3")
        return 0

    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", terminal)
        assert command(main)[0] == 0
    assert terminal.buffer.getvalue() == b"\\u03c0 \\u2248 3\n"


def test_more_memory_than_there_is_is_said(command):
    def huge() -> int:
        return int(jnp.zeros(2**50, jnp.int8)[0])

    def large() -> int:
        raise MemoryError

    for main in (huge, large):
        status, printed = command(main)
        assert status == 2
        assert printed.err == "error: this takes more memory than there is; make it smaller\n"
