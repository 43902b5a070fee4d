"""Every model in every layout that applies, tiny: what the tests of meshes and of the ledger share.

Sizes differ from each other where they can, and are divided by what shards them: no two parameters,
and no parameter and activation, have as many bytes by chance.
"""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax

from jaxnn import data
from jaxnn.mesh import Layout, lay_out, place, shardings, value_and_grad
from jaxnn.models import autoencoder, cnn, mlp, rnn, transformer

DATA = {"batch": "data"}
FSDP = DATA | {"embed": "data"}
TENSOR = {"heads": "model", "hidden": "model"}
VOCABULARY = {"vocab": "model"}
RING = {"sequence": "sequence"}
EXPERTS = {"experts": "model"}


class Case(NamedTuple):
    """A model and its configuration, the sizes of the mesh's axes, and the rules of the layout."""

    model: ModuleType
    config: Any
    mesh: dict[str, int]
    rules: dict[str, str]

    @property
    def batch(self):
        """16 examples: of 8 tokens, or of pixels."""
        if self.model in (transformer, rnn):
            return tokens(16, 8, self.config.vocabulary)
        k_inputs, k_targets = jax.random.split(jax.random.key(1))
        if self.model is autoencoder:
            return autoencoder.Batch(jax.random.uniform(k_inputs, (16, self.config.sizes[0])), None)
        shape = (64,) if self.model is cnn else self.config.sizes[:1]
        classes = self.config.classes if self.model is cnn else self.config.sizes[-1]
        labels = jax.random.randint(k_targets, (16,), 0, classes)
        # A key tells batch normalisation that this is training; nothing is drawn with it here.
        key = jax.random.key(2) if self.model is cnn else None
        return data.KeyedBatch(jax.random.uniform(k_inputs, (16, *shape)), labels, key)

    def params(self):
        """Drawn for the configuration, the same for each layout of it."""
        return self.model.init_params(jax.random.key(0), self.config)


class Compiled(NamedTuple):
    """A case's layout, its parameters and batch on the mesh, and the program of its gradient."""

    layout: Layout
    params: Any
    batch: Any
    program: Any


@functools.cache
def compiled(name):
    """A case, compiled once for all tests of a process, in float64."""
    case = CASES[name]
    with jax.enable_x64(True):
        mesh = jax.make_mesh(tuple(case.mesh.values()), tuple(case.mesh))
        layout = lay_out(case.model, case.config, mesh, case.rules)
        params = jax.device_put(case.params(), shardings(layout))
        batch = place(layout, case.batch)
        program = jax.jit(value_and_grad(case.model, layout)).lower(params, batch).compile()
    return Compiled(layout, params, batch, program)


def tokens(n, t, vocabulary):
    """Sequences of t tokens, and those that follow."""
    drawn = jax.random.randint(jax.random.key(3), (n, t + 1), 0, vocabulary)
    return data.KeyedBatch(drawn[:, :-1], drawn[:, 1:], None)


SIZES = {"vocabulary": 40, "positions": 8, "layers": 2, "width": 16, "heads": 4, "hidden": 24}
GPT = transformer.gpt2(**SIZES)
LLAMA = transformer.llama(**SIZES, kv_heads=4, chunk=4)
# A few heads of keys serve several of queries; norms of queries and keys; biases of some layers.
GROUPED = transformer.llama(
    **SIZES, kv_heads=2, qk_norm=True, attention_biases="qkv", feed_forward_biases=True, tied=True,
    recompute=True,
)  # fmt: skip
MIXTURE = transformer.llama(**SIZES, kv_heads=2, experts=4)
PERCEPTRON = mlp.Config(sizes=(16, 32, 24, 8), l2=0.1)
GROUPS = cnn.Config(channels=(8, 16), norm="group", groups=2)
BATCHES = cnn.Config(channels=(8, 16), norm="batch")
LSTM = rnn.Config(vocabulary=24, width=8, hidden=16, layers=2)
GRU = rnn.Config(vocabulary=24, width=8, hidden=16, cell="gru")
CODER = autoencoder.Config(sizes=(16, 32, 8))

EIGHT, TWO_FOUR = {"data": 8}, {"data": 2, "model": 4}
SEQUENCES = {"data": 2, "sequence": 4}
CUBE = {"data": 2, "sequence": 2, "model": 2}

CASES = {
    "mlp data": Case(mlp, PERCEPTRON, EIGHT, DATA),
    "mlp fsdp": Case(mlp, PERCEPTRON, EIGHT, FSDP),
    "cnn data, groups": Case(cnn, GROUPS, EIGHT, DATA),
    "cnn data, batch norm": Case(cnn, BATCHES, EIGHT, DATA),
    "cnn fsdp, batch norm": Case(cnn, BATCHES, EIGHT, FSDP),
    "lstm data": Case(rnn, LSTM, EIGHT, DATA),
    "lstm fsdp": Case(rnn, LSTM, EIGHT, FSDP),
    "gru data": Case(rnn, GRU, EIGHT, DATA),
    "autoencoder data": Case(autoencoder, CODER, EIGHT, DATA),
    "autoencoder fsdp": Case(autoencoder, CODER, EIGHT, FSDP),
    "gpt data": Case(transformer, GPT, EIGHT, DATA),
    "gpt fsdp": Case(transformer, GPT, EIGHT, FSDP),
    "gpt tensor": Case(transformer, GPT, TWO_FOUR, DATA | TENSOR),
    "gpt tensor, vocabulary": Case(transformer, GPT, TWO_FOUR, DATA | TENSOR | VOCABULARY),
    "gpt ring": Case(transformer, GPT, SEQUENCES, DATA | RING),
    "llama fsdp": Case(transformer, LLAMA, EIGHT, FSDP),
    "llama tensor, vocabulary": Case(transformer, LLAMA, TWO_FOUR, DATA | TENSOR | VOCABULARY),
    "llama ring": Case(transformer, LLAMA, SEQUENCES, DATA | RING),
    "grouped heads data": Case(transformer, GROUPED, EIGHT, DATA),
    "grouped heads fsdp x tensor": Case(
        transformer, GROUPED, {"data": 4, "model": 2}, FSDP | TENSOR | VOCABULARY
    ),
    "grouped heads ring": Case(transformer, GROUPED, SEQUENCES, FSDP | RING),
    "mixture data": Case(transformer, MIXTURE, EIGHT, DATA),
    "mixture experts": Case(transformer, MIXTURE, TWO_FOUR, DATA | EXPERTS),
    "mixture fsdp x experts": Case(transformer, MIXTURE, {"data": 4, "model": 2}, FSDP | EXPERTS),
    "gpt cube": Case(transformer, GPT, CUBE, FSDP | RING | TENSOR | VOCABULARY),
    "llama cube": Case(transformer, LLAMA, CUBE, FSDP | RING | TENSOR | VOCABULARY),
    "grouped heads cube": Case(transformer, GROUPED, CUBE, FSDP | RING | TENSOR | VOCABULARY),
    "mixture cube": Case(transformer, MIXTURE, CUBE, FSDP | RING | EXPERTS | {"heads": "model"}),
}
