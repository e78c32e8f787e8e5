"""What each column does to a model, through the public functions, and how it knows that it worked.

Invariant: a check measures something itself; that the product raised nothing is not enough. Left out: TFMOT's
techniques (`tfmot.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from tfcompress.graph.channels import channel_graph
from tfcompress.graph.outputs import gives_probabilities
from tfcompress.graph.shrink import shrink, silence
from tfcompress.graph.trace import replay
from tfcompress.techniques.channels import CRITERIA, Evidence
from tfcompress.techniques.channels.remove_blocks import removable_blocks
from tfcompress.techniques.channels.sparsity import penalized_weights
from tfcompress.techniques.cluster.selection import clusterable_kernels
from tfcompress.techniques.prune import prunable_kernels
from tfcompress.techniques.schedules import schedule_from_recipe
from zoo.case import Case, snapshot

# Float32 rounding through hundreds of layers, relative to the largest output.
BRIDGE_TOLERANCE = 1e-5
# The weights that are folded are rounded once more.
SIMPLIFY_TOLERANCE = 1e-4
# What every training here is: so many samples, in batches, over so many epochs.
SAMPLES, BATCH, EPOCHS = 8, 4, 2
STEPS = EPOCHS * SAMPLES // BATCH
CALIBRATION_SAMPLES = 32
SPARSITY = 0.5
CLUSTERS = 8
# Share of its parameters that a factorized layer may keep.
FACTORS_RATIO = 0.5
# Multiply-adds that channel pruning leaves, and how far it may be from a model with the same channels silenced.
MACS_SHARE, CHANNELS_TOLERANCE = 0.6, 1e-4
# Times the learning rate, the share of a weight that a step of growing L2 takes.
SPARSITY_STRENGTH = 300.0
# Fake quantization of a random network, untrained: less means that ranges are missing or wrong.
QUANTIZE_SNR_DB = 2.0


class Wrong(AssertionError):
    """The product raised nothing, and yet its result is not what it must be."""


def load(case: Case) -> str:
    """Saves the model and loads it back."""
    path = case.folder / "model.keras"
    case.model.save(path)
    return f"max relative difference {same_outputs(case, tfc.load(path)):.1e}"


def bridge_out(case: Case) -> str:
    """Keras 3 to tf_keras."""
    with unchanged(case.model):
        legacy = tfc.to_tf_keras(case.model)
    return f"max relative difference {same_outputs(case, legacy):.1e}, {_same_size(case.model, legacy)}"


def bridge_back(case: Case) -> str:
    """Keras 3 to tf_keras and back."""
    back = tfc.from_tf_keras(tfc.to_tf_keras(case.model))
    if not isinstance(back, keras.Model):
        raise Wrong(f"from_tf_keras gave a {type(back)}, no Keras 3 model")
    return f"max relative difference {same_outputs(case, back):.1e}, {_same_size(case.model, back)}"


def distill(case: Case) -> str:
    """A few steps under a teacher of the same structure."""
    student, teacher = case.model, case.build(seed=1)
    inputs = case.inputs(SAMPLES)
    outputs = student(inputs, training=False)
    is_classifier = all(output.shape[-1] > 1 for output in keras.tree.flatten(outputs))
    rng = np.random.default_rng(3)
    if is_classifier:
        draw = lambda output: rng.integers(0, output.shape[-1], size=output.shape[:-1])  # noqa: E731
        loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(student))
        distiller = tfc.Distiller(student, teacher, losses=[tfc.SoftTargets(temperature=2.0, weight=0.5)])
    else:
        # A single score has no classes to soften.
        draw = lambda output: rng.uniform(size=output.shape).astype("float32")  # noqa: E731
        loss = "mse"
        distiller = tfc.Distiller(student, teacher, losses=[_squared_difference], hard_weight=0.5)
    labels = keras.tree.map_structure(draw, outputs)
    with unchanged(teacher):
        return _train(distiller, student, (inputs, labels), loss)


def prune(case: Case) -> str:
    """`MagnitudePruning` over a few steps; half of each kernel must be zero."""
    model = case.model
    inputs = case.inputs(SAMPLES)
    schedule = schedule_from_recipe({"polynomial_decay": {"final_sparsity": SPARSITY}}, STEPS)
    pruning = tfc.MagnitudePruning(model, schedule)
    figure = _train(model, model, (inputs, case.targets(inputs)), "mse", [pruning])
    kernels = prunable_kernels(model)
    for kernel in kernels:
        values = keras.ops.convert_to_numpy(kernel.variable)
        zeros = np.count_nonzero(values == 0)
        if zeros != round(SPARSITY * values.size):
            raise Wrong(f"kernel {kernel.name!r} has {zeros} zeros among {values.size} weights, not {SPARSITY:.0%}")
    return f"{SPARSITY:.0%} of {len(kernels)} kernels zero; {figure}"


def prune_channels(case: Case) -> str:
    """`prune_channels` to 60% of the multiply-adds, against the model with the same channels silenced; it trains."""
    graph = channel_graph(case.model)
    with unchanged(case.model):
        made = tfc.prune_channels(case.model, macs=MACS_SHARE)
    share = tfc.count_macs(made) / tfc.count_macs(case.model)
    if share > MACS_SHARE:
        raise Wrong(f"{share:.1%} of the multiply-adds are left, not {MACS_SHARE:.0%}")
    inputs = case.inputs(SAMPLES)
    figure = _train(made, made, (inputs, case.targets(inputs)), "mse", epochs=1)
    figure = f"{share:.0%} of the multiply-adds; {figure}; {still_works(case, made)}"
    file = tfc.export_tflite(made, case.folder / "small.tflite", mode="float32")
    # Any channels may go; these are not the ones that were chosen.
    rng = np.random.default_rng(0)
    removed = np.concatenate([rng.permutation(units)[: len(units) // 3] for units in graph.groups])
    small = shrink(graph, removed)
    silence(graph, removed)
    return f"{figure}; {exported(file)}; silenced differs by {same_outputs(case, small, CHANNELS_TOLERANCE):.0e}"


def learn_channel_sparsity(case: Case) -> str:
    """A few steps under `ChannelSparsity`: the channels it is for must lose more of their size than any other."""
    graph = channel_graph(case.model)
    options: dict[str, Any] = {"kind": "growing_l2", "macs": MACS_SHARE}
    chosen = penalized_weights(case.model, **options).chosen > 0
    sparsity = tfc.ChannelSparsity(case.model, **options, strength=SPARSITY_STRENGTH, rise=1 / STEPS)
    size = CRITERIA["l1"]
    before = size(Evidence(graph, case.model))
    inputs = case.inputs(SAMPLES)
    figure = _train(case.model, case.model, (inputs, case.targets(inputs)), "mse", [sparsity])
    left = size(Evidence(graph, case.model)) / before
    if not left[chosen].max() < 0.9 * left[~chosen].min():
        raise Wrong(f"a channel to be pushed kept {left[chosen].max():.0%}, another one {left[~chosen].min():.0%}")
    return f"{chosen.sum():,} of {len(chosen):,} channels kept at most {left[chosen].max():.0%} of their size; {figure}"


def remove_blocks(case: Case) -> str:
    """`remove_blocks` of one block, against the model with that block's outputs silenced; it trains."""
    traced, blocks = removable_blocks(case.model)
    with unchanged(case.model):
        made = tfc.remove_blocks(case.model, count=1)
    left = {layer.name for layer in made._flatten_layers(include_self=False)}
    # What lies within a block goes along.
    block = max((one for one in blocks if one.layers[0] not in left), key=lambda one: len(one.calls))

    def silenced(index: int, call: Any, args: tuple, kwargs: dict) -> Any:
        if index != block.total.call:
            return call.operation(*args, **kwargs)
        # An operation of its own for the sum with zero would take a name that a layer may have.
        terms = zip(call.sources, keras.tree.flatten((args, kwargs)), strict=True)
        return next(tensor for ref, tensor in terms if ref == block.shortcut)

    inputs = case.inputs(SAMPLES)
    pairs = zip(*(case.outputs(model, inputs) for model in (replay(traced, silenced), made)), strict=True)
    worst = max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in pairs)
    if not worst <= CHANNELS_TOLERANCE:
        raise Wrong(f"max relative difference {worst:.1e} from the model with the block silenced")
    figure = _train(made, made, (inputs, case.targets(inputs)), "mse", epochs=1)
    share = tfc.count_macs(made) / tfc.count_macs(case.model)
    figure = f"1 of {len(blocks)} blocks gone, {share:.0%} of the multiply-adds; {figure}; {still_works(case, made)}"
    return f"{figure}; silenced differs by {worst:.0e}"


def cluster(case: Case) -> str:
    """`cluster`, then a few steps under `HoldClusters`: each clustered kernel must hold few values before and after."""
    with unchanged(case.model):
        made = tfc.cluster(case.model, CLUSTERS)
    figure = still_works(case, made)
    inputs = case.inputs(SAMPLES)
    trained = _train(made, made, (inputs, case.targets(inputs)), "mse", [tfc.HoldClusters(made)])
    chosen = clusterable_kernels(made, CLUSTERS)
    for kernel in chosen:
        values = len(np.unique(keras.ops.convert_to_numpy(kernel.variable)))
        if values > CLUSTERS:
            raise Wrong(f"a kernel of {kernel.layer.name!r} holds {values} values, more than {CLUSTERS}")
    return f"{len(chosen)} kernels hold at most {CLUSTERS} values; {figure}; {trained}"


def prune_weights(case: Case) -> str:
    """`prune_weights` over all layers together, without training; half of all pruned weights must be zero."""
    with unchanged(case.model):
        made = tfc.prune_weights(case.model, SPARSITY, budget="global")
    values = [keras.ops.convert_to_numpy(kernel.variable) for kernel in prunable_kernels(made)]
    zeros, size = (sum(counts) for counts in zip(*((np.sum(each == 0), each.size) for each in values), strict=True))
    if zeros != round(SPARSITY * size):
        raise Wrong(f"{zeros} of {size} weights are zero, not {SPARSITY:.0%}")
    return f"{zeros:,} of {size:,} weights zero; {still_works(case, made)}"


def quantize(case: Case) -> str:
    """`quantize_aware`, compared with the float model, then a training step."""
    aware, snr = _quantized(case)
    inputs = case.inputs(SAMPLES)
    trained = _train(aware, aware, (inputs, case.targets(inputs)), "mse", epochs=1)
    return f"SNR {snr:.0f} dB; {trained}; {still_works(case, aware)}"


def quantize_post_training(case: Case) -> str:
    """`quantize_post_training`, compared with the float model."""
    quantized, snr = _quantized(case, tfc.quantize_post_training)
    return f"SNR {snr:.0f} dB; {still_works(case, quantized)}"


def factorize(case: Case) -> str:
    """`factorize` to half of each layer, whose size must be that of its plan; then a few steps of training."""
    with unchanged(case.model):
        plan = tfc.factorization_plan(case.model, ratio=FACTORS_RATIO)
        made = tfc.factorize(case.model, ratio=FACTORS_RATIO)
    if made.count_params() != plan.num_params_after or not plan.num_params_after < plan.num_params_before:
        raise Wrong(f"{made.count_params():,} parameters, where the plan says {plan.num_params_after:,}")
    if plan.macs_after is not None and tfc.count_macs(made) != plan.macs_after:
        raise Wrong(f"{tfc.count_macs(made):,} multiply-adds, where the plan says {plan.macs_after:,}")
    chains = [row for row in plan.layers if row.method is not None]
    inputs = case.inputs(SAMPLES)
    figure = f"{len(chains)} layers, {made.count_params():,} of {plan.num_params_before:,} parameters"
    works = still_works(case, made)
    return f"{figure}; {_train(made, made, (inputs, case.targets(inputs)), 'mse')}; {works}"


def simplify(case: Case) -> str:
    """`simplify`, held against the model on inputs of the case's own."""
    with unchanged(case.model):
        made, certificate = tfc.simplify_with_certificate(case.model)
    difference = same_outputs(case, made, tolerance=SIMPLIFY_TOLERANCE)
    counts = f"{made.count_params():,} of {case.model.count_params():,} parameters, {len(certificate.steps)} steps"
    return f"max relative difference {difference:.1e}; {counts}; {still_works(case, made)}"


def technique(case: Case, function: str, **arguments: Any) -> str:
    """Any function `tfc.function(model, **arguments)` that returns a new model; then a few steps of training."""
    with unchanged(case.model):
        made = getattr(tfc, function)(case.model, **arguments)
    inputs = case.inputs(SAMPLES)
    trained = _train(made, made, (inputs, case.targets(inputs)), "mse")
    return f"{made.count_params():,} of {case.model.count_params():,} parameters; {trained}; {still_works(case, made)}"


def export(case: Case, mode: str) -> str:
    """`export_tflite`, whose gate audits, runs and compares the file."""
    with unchanged(case.model):
        calibration = case.batches(CALIBRATION_SAMPLES)
        result = tfc.export_tflite(case.model, case.folder / "model.tflite", mode=mode, calibration=calibration)
    return exported(result)


def export_quantized(case: Case) -> str:
    """The int8 export of the quantization-aware model."""
    aware, _ = _quantized(case)
    # It brings its ranges. Given data, the gate would ask for the same top class, which with random weights is a tie.
    return exported(tfc.export_tflite(aware, case.folder / "model.tflite", mode="int8"))


def same_outputs(case: Case, other: Any, tolerance: float = BRIDGE_TOLERANCE) -> float:
    """Largest difference of two models' outputs, relative to the largest output; `Wrong` above `tolerance`."""
    inputs = case.inputs(SAMPLES)
    expected, actual = case.outputs(case.model, inputs), case.outputs(other, inputs)
    if [x.shape for x in expected] != [x.shape for x in actual]:
        raise Wrong(f"outputs {[x.shape for x in actual]} instead of {[x.shape for x in expected]}")
    worst = max(np.abs(x - y).max() / np.abs(x).max() for x, y in zip(expected, actual, strict=True))
    # Not `worst > tolerance`, which NaN would pass.
    if not worst <= tolerance:
        raise Wrong(f"max relative difference {worst:.1e}, more than {tolerance:g}")
    if max(np.ptp(x, axis=0).max() / np.abs(x).max() for x in expected) < 1e-3:
        raise Wrong("the outputs don't depend on the inputs, so that this comparison shows nothing")
    return float(worst)


def exported(result: tfc.ExportResult) -> str:
    """The figure of an export, whose comparison must have taken place."""
    if result.parity.samples == 0 or not result.path.is_file():
        raise Wrong(f"nothing was compared: {result.parity.inputs}")
    snr = min(agreement.snr_db for agreement in result.parity.agreements)
    return f"{result.file_bytes / 1000:,.0f} kB, SNR {snr:.0f} dB"


def still_works(case: Case, made: keras.Model) -> str:
    """What is true of every model that a technique returns: a Keras 3 model, with outputs as before, that reloads."""
    if not isinstance(made, keras.Model) or made is case.model:
        raise Wrong(f"it gave {type(made)}, no new Keras 3 model")
    inputs = case.inputs(SAMPLES)
    outputs, before = case.outputs(made, inputs), case.outputs(case.model, inputs)
    if [x.shape for x in outputs] != [x.shape for x in before]:
        raise Wrong(f"outputs {[x.shape for x in outputs]} instead of {[x.shape for x in before]}")
    path = case.folder / "made.keras"
    made.save(path)
    reloaded = case.outputs(keras.saving.load_model(path, compile=False), inputs)
    for first, second in zip(outputs, reloaded, strict=True):
        if not (np.isfinite(first).all() and np.allclose(first, second, rtol=1e-4, atol=1e-6)):
            raise Wrong("outputs are not finite, or differ after saving and loading")
    return "reloads"


@contextlib.contextmanager
def unchanged(model: keras.Model) -> Iterator[None]:
    """Raises `Wrong` if the block changes the model."""
    config, weights = snapshot(model)
    yield
    config_after, weights_after = snapshot(model)
    same = len(weights) == len(weights_after) and all(map(np.array_equal, weights, weights_after))
    if config != config_after or not same:
        raise Wrong(f"model {model.name!r}, which must not be changed, was")


def _train(
    trainable: keras.Model,
    model: keras.Model,
    data: tuple[Any, Any],
    loss: Any,
    callbacks: Any = (),
    epochs: int = EPOCHS,
) -> str:
    """Fits a few steps; the loss must be finite and the model's weights must have moved."""
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in model.trainable_variables]
    # XLA takes a minute to compile what is run four times.
    trainable.compile(keras.optimizers.SGD(1e-3), loss=loss, jit_compile=False)
    inputs, targets = data
    losses = trainable.fit(
        inputs, targets, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    ).history["loss"]
    if not np.isfinite(losses).all():
        raise Wrong(f"the loss is {losses}")
    after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_variables]
    moved = sum(not np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    if moved == 0 or not all(np.isfinite(weight).all() for weight in after):
        raise Wrong(f"{moved} of {len(after)} weights moved, or one is not finite")
    return f"loss {' to '.join(f'{value:.3g}' for value in losses)}, {moved} of {len(after)} weights trained"


def _squared_difference(teacher: Any, student: Any) -> Any:
    return 0.5 * keras.ops.mean(keras.ops.square(teacher - student), axis=-1)


def _quantized(case: Case, function: Any = tfc.quantize_aware) -> tuple[keras.Model, float]:
    """The quantized Keras model, and how its outputs compare with the float ones, in dB."""
    with unchanged(case.model):
        aware = function(case.model, calibration=case.batches(CALIBRATION_SAMPLES))
    inputs = case.inputs(SAMPLES)
    pairs = zip(case.outputs(case.model, inputs), case.outputs(aware, inputs), strict=True)
    # Of the deviations from the mean: a network that answered always the same would pass otherwise.
    snr = min(10 * np.log10(np.var(x - x.mean(0)) / max(np.mean((x - y) ** 2), 1e-30)) for x, y in pairs)
    if not snr >= QUANTIZE_SNR_DB:
        raise Wrong(f"SNR {snr:.1f} dB of the quantized outputs, less than {QUANTIZE_SNR_DB:g}")
    return aware, float(snr)


def _same_size(first: Any, second: Any) -> str:
    counts = [sum(int(np.prod(weight.shape)) for weight in model.weights) for model in (first, second)]
    if counts[0] != counts[1]:
        raise Wrong(f"{counts[1]} weights, where the original has {counts[0]}")
    return f"{counts[0]:,} weights"
