"""Losses of features against NumPy, position by position and pair by pair; gradients against finite differences."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE
from keras.tree import flatten, map_structure

from tfcompress.errors import InvalidArgumentError
from tfcompress.techniques.distill.features.attention_maps import AttentionMaps
from tfcompress.techniques.distill.features.attention_transfer import AttentionTransfer
from tfcompress.techniques.distill.features.contrastive import Contrastive
from tfcompress.techniques.distill.features.hints import Hints
from tfcompress.techniques.distill.features.probabilistic import ProbabilisticTransfer
from tfcompress.techniques.distill.features.relational import RelationalAngle, RelationalDistance
from tfcompress.techniques.distill.features.similarity_preserving import SimilarityPreserving
from tfcompress.techniques.distill.features.solution_flow import SolutionFlow
from tfcompress.techniques.distill.features.variational import VariationalInformation

SAMPLES = 4
# The authors' code of each, and NumPy here, is in float64; so are ours on float64 inputs.
EXACT = {"rtol": 1e-5, "atol": 1e-7}


def shrink(x, axis, size):
    """Means over areas: each cell is cut into `size` equal ones, and these are grouped anew."""
    many = x.shape[axis]
    if many == size:
        return x
    cut = np.moveaxis(np.repeat(x, size, axis=axis), axis, 0)
    return np.moveaxis(cut.reshape(size, many, *cut.shape[1:]).mean(1), 0, axis)


def to_one_size(a, b):
    for axis in range(a.ndim - 1):
        size = min(a.shape[axis], b.shape[axis])
        a, b = shrink(a, axis, size), shrink(b, axis, size)
    return a, b


def each(of_sample):
    return lambda t, s: np.array([of_sample(*pair) for pair in zip(t, s, strict=True)])


def positions(x):
    return x.reshape(-1, x.shape[-1])


def of_directions(t, s):
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(positions(t), positions(s), strict=True)]
    return np.mean([2 - 2 * cosine for cosine in cosines])


def of_attention(power):
    def of_sample(t, s):
        t, s = (np.linalg.norm(x, ord=power, axis=-1, keepdims=True) ** power for x in (t, s))
        t, s = (np.ravel(x) for x in to_one_size(t, s))
        return sum((a / np.linalg.norm(t) - b / np.linalg.norm(s)) ** 2 for a, b in zip(t, s, strict=True)) / len(t)

    return of_sample


def of_flow(t, s):
    def matrix(first, last):
        first, last = (positions(x) for x in to_one_size(first, last))
        return sum(np.outer(a, b) for a, b in zip(first, last, strict=True)) / len(first)

    return np.mean((matrix(*t) - matrix(*s)) ** 2)


def of_scores(t, s):
    if len(t) != len(s):
        t, s = t.mean(0, keepdims=True), s.mean(0, keepdims=True)
    rows = zip(positions(t), positions(s), strict=True)
    return np.mean([sum(p * np.log(p / q) for p, q in zip(*row, strict=True) if p > 0) for row in rows])


def numpy_similarity(t, s):
    values = []
    for i in range(len(t)):
        rows = [[np.sum(x[i] * other) for other in x] for x in (t, s)]
        a, b = (np.array(row) / np.linalg.norm(row) for row in rows)
        values.append(np.mean((a - b) ** 2))
    return np.array(values)


def huber(x):
    return 0.5 * x**2 if abs(x) <= 1 else abs(x) - 0.5


def numpy_distance(t, s):
    count, relative = len(t), []
    for x in (t, s):
        apart = {pair: np.sqrt(np.sum((x[pair[0]] - x[pair[1]]) ** 2)) for pair in np.ndindex(count, count)}
        mean = np.mean([apart[pair] for pair in itertools.permutations(range(count), 2)])
        relative.append({pair: value / mean for pair, value in apart.items()})
    return np.array(
        [np.mean([huber(relative[0][i, j] - relative[1][i, j]) for j in range(count)]) for i in range(count)]
    )


def numpy_angle(t, s):
    def cosine(x, i, j, k):
        a, b = np.ravel(x[i] - x[j]), np.ravel(x[k] - x[j])
        return a @ b / np.sqrt((a @ a) * (b @ b)) if a.any() and b.any() else 0.0

    pairs = list(np.ndindex(len(t), len(t)))
    return np.array(
        [np.mean([huber(cosine(t, i, j, k) - cosine(s, i, j, k)) for i, k in pairs]) for j in range(len(t))]
    )


def numpy_probabilistic(t, s):
    def choices(x, i):
        others = [np.ravel(x[j]) for j in range(len(x)) if j != i]
        own = np.ravel(x[i])
        kernel = [(1 + own @ o / (np.linalg.norm(own) * np.linalg.norm(o))) / 2 for o in others]
        return np.array(kernel) / sum(kernel)

    return np.array([np.sum(choices(t, i) * np.log(choices(t, i) / choices(s, i))) for i in range(len(t))])


def numpy_variational(layer):
    raw, *kernels = (layer.raw_variance, *(dense.kernel for dense in layer.means))
    raw, *kernels = (np.asarray(weights, "float64") for weights in (raw, *kernels))

    def of_sample(t, s):
        t, s = (positions(x) for x in to_one_size(t, s))
        values = []
        for target, x in zip(t, s, strict=True):
            mean = np.maximum(np.maximum(x @ kernels[0], 0) @ kernels[1], 0) @ kernels[2]
            variance = np.log1p(np.exp(raw)) + 1e-5
            values.append(-np.log(np.exp(-((target - mean) ** 2) / (2 * variance)) / np.sqrt(variance)))
        return np.mean(values)

    return each(of_sample)


def numpy_contrastive(layer, temperature):
    embeddings = layer.teacher_embedding, layer.student_embedding

    def values(t, s):
        sides = []
        for x, dense in zip((t, s), embeddings, strict=True):
            kernel, bias = (np.asarray(weights, "float64") for weights in (dense.kernel, dense.bias))
            e = np.array([positions(sample).mean(0) @ kernel + bias for sample in x])
            sides.append(e / np.linalg.norm(e, axis=1, keepdims=True))
        near = np.exp(sides[0] @ sides[1].T / temperature)
        found = [(near[i, i] / near[i].sum(), near[i, i] / near[:, i].sum()) for i in range(len(t))]
        return np.array([-(np.log(a) + np.log(b)) / 2 for a, b in found])

    return values


@dataclasses.dataclass
class Case:
    """A loss with its reference, or what makes the reference from the trained layer, and shapes without the batch."""

    loss: Any
    reference: Callable
    teacher: Any
    student: Any
    make: Callable = np.asarray

    def sides(self, samples=SAMPLES, seed=0):
        """Float64 features of teacher and student."""
        rng = np.random.default_rng(seed)
        shapes = [side if isinstance(side, list) else [side] for side in (self.teacher, self.student)]
        made = [tuple(self.make(rng.normal(size=(samples, *shape))) for shape in side) for side in shapes]
        return [side if len(side) > 1 else side[0] for side in made]

    def ready(self):
        """The callable, with fixed weights where it is trained, and its reference."""
        if not hasattr(self.loss, "trained_along"):
            return self.loss, self.reference
        layer = self.loss.trained_along(self.teacher, self.student)
        rng = np.random.default_rng(7)
        for variable in layer.trainable_variables:
            variable.assign(rng.normal(size=variable.shape))
        return layer, self.reference(layer)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def flow(t, s):
    return each(of_flow)(list(zip(*t, strict=True)), list(zip(*s, strict=True)))


CASES = {
    "hints-map": Case(Hints(), each(lambda t, s: np.mean((t - s) ** 2)), (2, 3, 2), (2, 3, 2)),
    "hints-vector": Case(Hints(), each(lambda t, s: np.mean((t - s) ** 2)), (5,), (5,)),
    "hints-directions": Case(Hints(normalize=True), each(of_directions), (2, 2, 3), (2, 2, 3)),
    "hints-direction": Case(Hints(normalize=True), each(of_directions), (4,), (4,)),
    "attention": Case(AttentionTransfer(), each(of_attention(2)), (2, 3, 4), (2, 3, 2)),
    "attention-first": Case(AttentionTransfer(power=1), each(of_attention(1)), (3, 4), (3, 2)),
    "attention-fourth": Case(AttentionTransfer(power=4.0), each(of_attention(4)), (2, 2, 2), (2, 2, 3)),
    "attention-smaller": Case(AttentionTransfer(), each(of_attention(2)), (4, 4, 2), (2, 2, 3)),
    "attention-larger": Case(AttentionTransfer(), each(of_attention(2)), (2, 3), (5, 2)),
    "attention-crossed": Case(AttentionTransfer(), each(of_attention(2)), (2, 3, 2), (3, 2, 2)),
    "similarity": Case(SimilarityPreserving(), numpy_similarity, (2, 2, 3), (5,)),
    "distance": Case(RelationalDistance(), numpy_distance, (2, 2, 3), (3, 2)),
    "distance-vector": Case(RelationalDistance(), numpy_distance, (1,), (1,)),
    "angle": Case(RelationalAngle(), numpy_angle, (2, 2, 2), (3, 2)),
    "angle-vector": Case(RelationalAngle(), numpy_angle, (3,), (2,)),
    "flow": Case(SolutionFlow(), flow, [(4, 4, 2), (2, 2, 3)], [(3, 3, 2), (2, 3, 3)]),
    "flow-later-larger": Case(SolutionFlow(), flow, [(2, 2), (3, 3)], [(4, 2), (4, 3)]),
    "flow-vector": Case(SolutionFlow(), flow, [(2,), (3,)], [(2,), (3,)]),
    "probabilistic": Case(ProbabilisticTransfer(), numpy_probabilistic, (2, 2, 2), (3,)),
    "maps": Case(AttentionMaps(), each(of_scores), (2, 3, 4), (2, 3, 4), softmax),
    "maps-other-heads": Case(AttentionMaps(), each(of_scores), (4, 3, 2), (2, 3, 2), softmax),
    "variational": Case(VariationalInformation(), numpy_variational, (2, 2, 3), (4, 2, 2)),
    "variational-vector": Case(VariationalInformation(), numpy_variational, (4,), (5,)),
    "contrastive": Case(
        Contrastive(embedding=3, temperature=0.5), lambda layer: numpy_contrastive(layer, 0.5), (2, 2, 3), (4,)
    ),
}
TRAINED = [name for name, case in CASES.items() if hasattr(case.loss, "trained_along")]
PLAIN = [name for name in CASES if name not in TRAINED]


def cast(side, dtype):
    return map_structure(lambda x: np.asarray(x, dtype), side)


def values_and_slopes(loss, teacher, student):
    student = map_structure(tf.convert_to_tensor, student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss(teacher, student)
    return values, flatten(tape.gradient(values, student))


def numpy_slopes(reference, teacher, student):
    """Of the sum over the samples, by finite differences."""
    slopes = []
    for leaf in flatten(student):
        slopes.append(np.zeros(leaf.shape))
        for place in np.ndindex(leaf.shape):
            was, ends = leaf[place], []
            for end in (was + 1e-5, was - 1e-5):
                leaf[place] = end
                ends.append(reference(teacher, student).sum())
            leaf[place] = was
            slopes[-1][place] = (ends[0] - ends[1]) / 2e-5
    return slopes


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_numpy(name):
    case = CASES[name]
    loss, reference = case.ready()
    teacher, student = case.sides()
    expected = reference(teacher, student)
    assert expected.shape == (SAMPLES,) and np.all(np.abs(expected) > 1e-4)
    found, slopes = values_and_slopes(loss, cast(teacher, "float32"), cast(student, "float32"))
    assert found.shape == (SAMPLES,) and found.dtype == "float32"
    np.testing.assert_allclose(found, expected, **CLOSE)
    tolerance = CLOSE
    if name in PLAIN:
        found, slopes = values_and_slopes(loss, teacher, student)
        np.testing.assert_allclose(found, expected, **EXACT)
        tolerance = EXACT
    expected_slopes = numpy_slopes(reference, teacher, student)
    assert any(np.abs(slope).max() > 1e-4 for slope in expected_slopes)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(slope, expected_slope, **tolerance)


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_of_the_trained_parts_equal_numpy(name):
    case = CASES[name]
    layer, _ = case.ready()
    teacher, student = case.sides()
    with tf.GradientTape() as tape:
        values = layer(cast(teacher, "float32"), cast(student, "float32"))
    gradients = tape.gradient(values, layer.trainable_variables)
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        was, slopes = np.array(variable), np.zeros(variable.shape)
        for place in np.ndindex(was.shape):
            ends = []
            for step in (1e-3, -1e-3):
                moved = was.copy()
                moved[place] += step
                variable.assign(moved)
                ends.append((moved[place], case.reference(layer)(teacher, student).sum()))
            variable.assign(was)
            slopes[place] = (ends[0][1] - ends[1][1]) / (float(ends[0][0]) - float(ends[1][0]))
        np.testing.assert_allclose(gradient, slopes, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["variational", "contrastive"])
def test_what_is_trained_along_learns(name):
    case = CASES[name]
    layer = case.loss.trained_along(case.teacher, case.student)
    teacher, student = cast(case.sides(), "float32")
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(layer.trainable_variables)
    means = []
    for _ in range(10):
        with tf.GradientTape() as tape:
            mean = tf.reduce_mean(layer(teacher, student))
        optimizer.apply(tape.gradient(mean, layer.trainable_variables))
        means.append(float(mean))
    assert means[-1] < means[0] - 0.05


def rotated(x, seed=0):
    """The features of each sample as a vector, turned."""
    flat = x.reshape(len(x), -1)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(flat.shape[1], flat.shape[1])))
    return flat @ turn


AT_REST = {
    "hints-map": lambda t: t,
    "hints-directions": lambda t: t * np.linspace(0.5, 2, SAMPLES * 4).reshape(SAMPLES, 2, 2, 1),
    "attention": lambda t: 3 * np.sqrt(np.sum(t**2, -1, keepdims=True)),
    "similarity": lambda t: 3 * rotated(t),
    "distance": lambda t: 3 * rotated(t) + 2,
    "angle": lambda t: 3 * rotated(t) + 2,
    "flow": lambda t: t,
    "probabilistic": lambda t: 3 * rotated(t),
    "maps": lambda t: t,
}


@pytest.mark.parametrize("name", AT_REST)
def test_zero_and_at_rest_where_the_docstring_says(name):
    case = CASES[name]
    teacher, _ = case.sides()
    values, slopes = values_and_slopes(case.loss, teacher, AT_REST[name](teacher))
    np.testing.assert_allclose(values, 0, atol=1e-9)
    if name != "maps":  # Among probabilities it is at rest only along those that add up to 1.
        for slope in slopes:
            np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_attention_maps_are_at_rest_before_the_softmax():
    scores = tf.constant(np.random.default_rng(0).normal(size=(2, 2, 3, 4)))
    with tf.GradientTape() as tape:
        tape.watch(scores)
        values = AttentionMaps()(tf.nn.softmax(scores).numpy(), tf.nn.softmax(scores))
    np.testing.assert_allclose(tape.gradient(values, scores), 0, atol=1e-9)


def test_attention_maps_with_masked_keys_equal_numpy():
    teacher, student = (softmax(x) for x in np.random.default_rng(0).normal(size=(2, 2, 2, 3, 4)))
    for side in (teacher, student):
        side[..., -1] = 0
        side /= side.sum(-1, keepdims=True)
    np.testing.assert_allclose(AttentionMaps()(teacher, student), each(of_scores)(teacher, student), **CLOSE)


def opposite(x):
    """Samples of which each is 1 or -1 in one place, and so the next one's opposite."""
    flat = np.zeros((len(x), x[0].size))
    flat[:, 0] = (-1.0) ** np.arange(len(x))
    return flat.reshape(x.shape)


EXTREMES = {
    "zero": lambda x: 0 * x,
    "constant": lambda x: 0 * x + 3.3,
    "constant-in-the-batch": lambda x: 0 * x + x[:1] + 7.7,
    "one": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, 1.0, 0.0),
    "twice-the-same": lambda x: x[[0] * 2 + list(range(2, len(x)))],
    "tiny": lambda x: 1e-30 * x,
    "large": lambda x: 1e4 * x,
    "opposite": opposite,
}
# One of each loss, and of what it does differently for other shapes.
KINDS = (
    "hints-directions", "attention-crossed", "attention-first", "similarity", "distance", "angle", "flow",
    "probabilistic", "maps", "maps-other-heads", "variational", "contrastive",
)  # fmt: skip
BY_DIRECTION = ("hints-directions", "attention-crossed", "attention-first", "similarity", "distance", "angle")


@pytest.mark.parametrize("name", KINDS)
def test_extreme_features_stay_finite(name):
    case = CASES[name]
    loss, _ = case.ready()
    compiled = tf.function(lambda *sides: values_and_slopes(loss, *sides), autograph=False)
    teacher, student = cast(case.sides(), "float32")
    for kind, extreme in EXTREMES.items():
        extremes = [cast(map_structure(extreme, side), "float32") for side in (teacher, student)]
        for sides in ((teacher, extremes[1]), (extremes[0], student), extremes):
            values, slopes = compiled(*map_structure(tf.convert_to_tensor, list(sides)))
            assert np.isfinite(values).all(), kind
            assert all(np.isfinite(slope).all() for slope in slopes), kind
            if name in BY_DIRECTION:
                assert np.abs(slopes[0]).max() < 1e5, kind
            if name in BY_DIRECTION and kind in ("zero", "tiny") and sides[0] is teacher:
                np.testing.assert_array_equal(slopes[0], 0)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_is_compared_in_float32(name):
    case = CASES[name]
    loss, reference = case.ready()
    teacher, student = cast(case.sides(), "float16")
    values = loss(teacher, student)
    assert values.dtype == "float32"
    np.testing.assert_allclose(values, reference(cast(teacher, "float64"), cast(student, "float64")), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_samples_are_compared_where_it_says_so(name):
    case = CASES[name]
    loss, _ = case.ready()
    teacher, student = cast(case.sides(), "float32")
    together = np.asarray(loss(teacher, student))
    first = [map_structure(lambda x: x[:1], side) for side in (teacher, student)]
    first_two = [map_structure(lambda x: x[:2], side) for side in (teacher, student)]
    if not case.loss.compares_samples:
        np.testing.assert_allclose(loss(*first_two), together[:2], **CLOSE)
        np.testing.assert_allclose(loss(*first), together[:1], **CLOSE)
        return
    assert not np.allclose(loss(*first_two), together[:2], rtol=1e-3)
    values, slopes = values_and_slopes(loss, *first)
    np.testing.assert_allclose(values, 0, atol=1e-5)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-5)


@pytest.mark.parametrize("name", sorted({"distance", "angle", "similarity", "probabilistic"}))
def test_features_far_from_zero_keep_their_digits(name):
    """After a ReLU samples have much in common: their differences are small beside their size."""
    case = CASES[name]
    teacher, student = (10 + x for x in case.sides())
    values = case.loss(cast(teacher, "float32"), cast(student, "float32"))
    np.testing.assert_allclose(values, case.reference(teacher, student), rtol=1e-3, atol=1e-6)


def test_xla_compiles_what_compares_samples_and_sizes_with_an_open_batch():
    names = ("attention-crossed", "distance", "angle")
    losses = {name: CASES[name].ready()[0] for name in names}
    sides = {name: cast(CASES[name].sides(), "float32") for name in names}
    specs = map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), sides)

    def values(sides):
        return {name: values_and_slopes(loss, *sides[name]) for name, loss in losses.items()}

    compiled = tf.function(values, jit_compile=True, autograph=False, input_signature=[specs])
    found, expected = compiled(sides), values(sides)
    # Without XLA, TensorFlow makes 0 of 0 times the endless slope of a root at 0.
    dead = compiled(map_structure(np.zeros_like, sides))
    for name in names:
        for ours, plain in zip(flatten(found[name]), flatten(expected[name]), strict=True):
            np.testing.assert_allclose(ours, plain, **CLOSE, err_msg=name)
        assert all(np.isfinite(values).all() for values in flatten(dead[name])), name


@pytest.mark.parametrize("name", ["attention", "distance", "maps"])
def test_open_sizes_are_taken_to_be_the_same(name):
    case = CASES[name]
    teacher, student = cast(case.sides(), "float32")
    specs = [
        map_structure(lambda x: tf.TensorSpec([None] * (x.ndim - 1) + [x.shape[-1]], x.dtype), side)
        for side in (teacher, student)
    ]
    graph = tf.function(lambda *sides: case.loss(*sides), autograph=False, input_signature=specs)
    np.testing.assert_allclose(graph(teacher, student), case.loss(teacher, student), **CLOSE)


@pytest.mark.parametrize("name", TRAINED)
def test_under_mixed_precision_the_trained_parts_are_float32(name):
    case = CASES[name]
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = case.loss.trained_along(case.teacher, case.student)
        values = layer(*(tf.cast(side, "float16") for side in case.sides()))
    finally:
        keras.config.set_dtype_policy("float32")
    assert values.dtype == "float32"
    assert layer.trainable_variables and all(variable.dtype == "float32" for variable in layer.trainable_variables)


def test_the_first_variance_of_variational_information_is_5():
    layer = VariationalInformation().trained_along((3,), (2,))
    np.testing.assert_allclose(np.log1p(np.exp(layer.raw_variance)) + 1e-5, [5.0] * 3, rtol=1e-6)


def of(*shape):
    return np.zeros(shape, "float32")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (
                lambda kind=kind: kind(weight=-1),
                f"`{kind.__name__}.weight` must be a number of at least 0. Received: -1",
            )
            for kind in sorted({type(case.loss) for case in CASES.values()}, key=lambda kind: kind.__name__)
        ),
        (lambda: Hints(weight=float("inf")), "`Hints.weight` must be a number of at least 0"),
        (
            lambda: Hints()(of(2, 3), of(2, 4)),
            r"`Hints.student_features` must be of the teacher's shape \(2, 3\). Received: \(2, 4\)",
        ),
        (lambda: Hints()(of(2), of(2)), r"`Hints.teacher_features` must be of shape \(batch, ..., channels\)"),
        (lambda: AttentionTransfer(power=0.5), "`AttentionTransfer.power` must be a number of at least 1"),
        (
            lambda: AttentionTransfer()(of(2, 4, 3), of(2, 3)),
            r"`AttentionTransfer.student_features` must be of shape \(batch, positions..., channels\)",
        ),
        (
            lambda: AttentionTransfer()(of(2, 4, 3), of(2, 4, 4, 3)),
            r"student_features` must be of as many axes as the teacher's, which are of shape \(2, 4, 3\)",
        ),
        *(
            (lambda kind=kind: kind()(of(2, 3), of(3, 3)), f"`{kind.__name__}.student_features` must be of 2 samples")
            for kind in (SimilarityPreserving, RelationalDistance, RelationalAngle, ProbabilisticTransfer)
        ),
        (
            lambda: SolutionFlow()(of(2, 3), (of(2, 3), of(2, 3))),
            r"`SolutionFlow.teacher_features` must be a pair \(first, last\)",
        ),
        (
            lambda: SolutionFlow()((of(2, 3), of(2, 3)), (of(2, 3),) * 3),
            r"`SolutionFlow.student_features` must be a pair .* Received: '3 of them'",
        ),
        (
            lambda: SolutionFlow()((of(2, 3), of(2, 4)), (of(2, 3), of(2, 5))),
            r"`SolutionFlow.student_features` must be of \(3, 4\) channels .* Received: \(3, 5\)",
        ),
        (
            lambda: SolutionFlow()((of(2, 4, 3), of(2, 4)), (of(2, 3), of(2, 5))),
            r"`SolutionFlow.teacher_features` must be of as many axes as the first layer's",
        ),
        (
            lambda: SolutionFlow()((of(2, 3), of(2, 4)), (of(3, 3), of(3, 4))),
            "`SolutionFlow.student_features` must be of 2 samples",
        ),
        (
            lambda: AttentionMaps()(of(2, 3, 3), of(2, 3, 3)),
            r"`AttentionMaps.teacher_features` must be attention probabilities of shape \(batch, heads, queries",
        ),
        (
            lambda: AttentionMaps()(of(2, 4, 3, 3), of(2, 2, 5, 3)),
            "`AttentionMaps.student_features` must be of 3 queries",
        ),
        (lambda: AttentionMaps()(of(2, 4, 3, 3), of(2, 2, 3, 5)), "`AttentionMaps.student_features` must be of 3 keys"),
        (
            lambda: VariationalInformation()(of(2, 3), of(2, 3)),
            r"`VariationalInformation` must be called as `VariationalInformation\(\).trained_along\(teacher_shape",
        ),
        (lambda: Contrastive()(of(2, 3), of(2, 3)), "`Contrastive` must be called as"),
        (
            lambda: VariationalInformation().trained_along((4, 4, 3), (3,)),
            r"`VariationalInformation.student_shape` must be of as many axes as the teacher's, \(4, 4, 3\)",
        ),
        (
            lambda: VariationalInformation().trained_along((4, None), (4, 3)),
            "`VariationalInformation.teacher_shape` must be a shape .*of known channels",
        ),
        (lambda: Contrastive().trained_along((3,), 3), "`Contrastive.student_shape` must be a shape"),
        (lambda: Contrastive(embedding=0), "`Contrastive.embedding` must be an integer of at least 1"),
        (lambda: Contrastive(temperature=0), "`Contrastive.temperature` must be a number above 0"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()
