"""Several teachers as one: what they say together against NumPy, training, the cache, and what is refused."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import CLOSE, cross_entropy, numpy_log_softmax, tiny_mlp
from keras import layers

import tfcompress as tfc
from tfcompress.errors import InvalidArgumentError, ModelError, RecipeError
from tfcompress.pipeline import rows
from tfcompress.pipeline.plan import plan_run

X = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")


def members(count=3, classes=4, **options):
    """Untrained networks, each with weights of its own."""
    models = []
    for seed in range(count):
        keras.utils.set_random_seed(seed + 1)
        model = tiny_mlp(classes=classes, name=f"member{seed}", **options)
        model.set_weights([3 * weight for weight in model.get_weights()])
        models.append(model)
    return models


def log_probabilities(models, x=X):
    return np.stack([numpy_log_softmax(keras.ops.convert_to_numpy(model(x)).astype("float64")) for model in models])


def combined(models, weights, combine, labels=None):
    """What an ensemble must say, one sample at a time."""
    weights = np.asarray(weights, "float64") / np.sum(weights)
    log_p = log_probabilities(models)
    mean = np.log(np.einsum("m,mbc->bc", weights, np.exp(log_p)))
    if combine == "probabilities":
        return mean
    for row in range(len(X)):
        label = mean[row].argmax() if labels is None or labels[row] < 0 else labels[row]
        right = [m for m in range(len(models)) if log_p[m, row].argmax() == label] or range(len(models))
        total = sum(weights[m] for m in right)
        mean[row] = np.log(sum(weights[m] / total * np.exp(log_p[m, row]) for m in right))
    return mean


def labels_of_all_kinds(models):
    """Labels that all, some and none of the models find, and that are none."""
    first = log_probabilities(models).argmax(-1)
    labels = np.random.default_rng(3).integers(0, 4, len(X))
    labels[:8] = first[0, :8]
    labels[-2:] = -1
    assert {0, 1} <= set((first == labels).sum(0)[:-2])
    return labels.astype("int32")


@pytest.mark.parametrize("weights", [None, [1, 2.5, 0.5]])
def test_means_are_those_of_numpy_also_compiled(weights):
    models = members()
    x = tf.constant(X)
    labels = labels_of_all_kinds(models)
    for combine in ("probabilities", "correct"):
        ensemble = tfc.Ensemble(models, weights=weights, combine=combine)
        assert ensemble.compiles and ensemble.num_classes == 4 and ensemble.output_shape == (4,)
        for given in (None, labels) if combine == "correct" else (None,):
            expected = combined(models, weights or [1, 1, 1], combine, given)
            compiled = tf.function(ensemble.logits, jit_compile=weights is not None)
            for function in (ensemble.logits, compiled):
                np.testing.assert_allclose(function(x, given), expected, rtol=1e-4, atol=1e-4)
    own = np.stack([model(X) for model in models])
    expected = np.einsum("m,mbc->bc", np.asarray(weights or [1, 1, 1]) / np.sum(weights or [1, 1, 1]), own)
    logits = tfc.Ensemble(models, weights=weights, combine="logits").logits(x)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_one_hot_labels_and_positions_are_chosen_by_too():
    images = np.random.default_rng(0).uniform(size=(2, 4, 4, 1)).astype("float32")
    keras.utils.set_random_seed(0)
    models = [keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 3, padding="same")]) for _ in "ab"]
    labels = np.random.default_rng(1).integers(0, 3, (2, 4, 4))
    ensemble = tfc.Ensemble(models, combine="correct")
    actual = ensemble.logits(images, labels).numpy()
    log_p = np.stack([numpy_log_softmax(keras.ops.convert_to_numpy(model(images))) for model in models])
    for at in np.ndindex(2, 4, 4):
        right = [m for m in range(2) if log_p[m][at].argmax() == labels[at]] or [0, 1]
        np.testing.assert_allclose(actual[at], np.log(np.mean([np.exp(log_p[m][at]) for m in right], 0)), rtol=1e-4)
    one_hot = np.eye(3, dtype="float32")[labels]
    np.testing.assert_allclose(ensemble.logits(images, one_hot), actual, **CLOSE)


def test_a_certain_member_leaves_finite_logits():
    ensemble = tfc.Ensemble([lambda x: x * 1e4, lambda x: tf.nn.softmax(x * 1e4)], combine="correct")
    x = np.eye(3, dtype="float32")
    for labels in (np.arange(3), np.array([1, 2, 0])):
        logits = ensemble.logits(x, labels).numpy()
        assert np.isfinite(logits).all() and (logits.argmax(1) == np.arange(3)).all()


def test_members_have_their_own_inputs_and_classes():
    images = np.random.default_rng(0).uniform(size=(4, 6, 6, 1)).astype("float32")
    large = lambda x: tf.reshape(x, (4, -1))  # noqa: E731
    both = [tfc.Teacher(large, resize=(2, 2)), tfc.Teacher(large, class_map=[9, 0, 7, 35])]
    inner = tfc.Ensemble(both, combine="logits")
    outer = tfc.Ensemble([inner, both[0]], weights=[2, 1], combine="logits")
    small = tf.image.resize(images, (2, 2), antialias=True).numpy().reshape(4, 4)
    chosen = images.reshape(4, -1)[:, [9, 0, 7, 35]]
    np.testing.assert_allclose(outer.logits(images), 2 / 3 * (small + chosen) / 2 + small / 3, **CLOSE)


def test_a_key_is_of_all_members_and_how_they_are_combined():
    models = members()
    ensembles = [
        tfc.Ensemble(models),
        tfc.Ensemble(models[::-1]),
        tfc.Ensemble(models[:2]),
        tfc.Ensemble(models, weights=[1, 1, 2]),
        tfc.Ensemble(models, combine="logits"),
        tfc.Ensemble([*models[:2], tfc.Teacher(models[2], class_map=[1, 0, 2, 3])]),
        tfc.Ensemble([*models[:2], lambda x: models[2](x)]),
    ]
    assert len({ensemble.key() for ensemble in ensembles}) == len(ensembles)
    assert tfc.Ensemble(models).key() == ensembles[0].key()


# ---- training


def train(source, batches):
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    distiller = tfc.Distiller(student, source, [tfc.SoftTargets(temperature=2.0, weight=1.0)])
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy())
    history = distiller.fit(batches, epochs=1, steps_per_epoch=3, verbose=0).history
    return student.get_weights(), history["distillation_loss"][0]


@pytest.fixture(scope="module")
def digits():
    return tfc.load_dataset("digits")


@pytest.fixture(scope="module")
def of_digits():
    models = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        models.append(keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)]))
    return models


def test_a_cached_ensemble_teaches_the_same(digits, of_digits, tmp_path):
    ensemble = tfc.Ensemble(of_digits, weights=[2, 1])
    stored = tfc.cache_teacher(ensemble, digits, tmp_path)
    expected, loss = train(ensemble, digits.train_batches(100, seed=0, epochs=1))
    actual, stored_loss = train(stored, stored.train_batches(digits, 100, seed=0, epochs=1))
    np.testing.assert_allclose(stored_loss, loss, rtol=1e-3)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-4)
    for another in (
        tfc.Ensemble(of_digits[::-1], weights=[2, 1]),
        tfc.Ensemble(of_digits, weights=[2, 1], combine="logits"),
    ):
        with pytest.raises(InvalidArgumentError, match="what differs: teacher"):
            tfc.cache_teacher(another, digits, tmp_path)


def test_the_labels_of_each_batch_choose_who_teaches(digits, of_digits):
    seen = []

    class Noted(tfc.Ensemble):
        def logits(self, inputs, labels=None):
            seen.append(labels)
            return super().logits(inputs, labels)

    _, loss = train(Noted(of_digits, combine="correct"), digits.train_batches(100, seed=0, epochs=1))
    assert np.isfinite(loss) and all(labels is not None for labels in seen)


def test_who_is_right_is_stored_by_the_labels_of_the_data(digits, of_digits, tmp_path):
    ensemble = tfc.Ensemble(of_digits, combine="correct")
    stored = tfc.cache_teacher(ensemble, digits, tmp_path)
    x, y = next(iter(digits.train.batch(200)))
    expected = ensemble.logits(x, y).numpy()
    np.testing.assert_allclose(stored.rows(0, np.arange(200)), expected, atol=1e-2)
    assert np.abs(expected - ensemble.logits(x).numpy()).max() > 0.1
    # The same pictures with other labels, beyond the samples that are compared, are other data to such a teacher.
    splits = dict(digits.splits)
    stream = splits["train"].stream.enumerate().map(lambda at, s: (s[0], tf.where(at == 1000, 0, s[1])))
    splits["train"] = dataclasses.replace(splits["train"], stream=stream)
    relabelled = dataclasses.replace(digits, splits=splits)
    assert [int(label) for _, label in digits.train.skip(1000).take(1)] != [0]
    with pytest.raises(InvalidArgumentError, match="what differs: labels"):
        tfc.cache_teacher(ensemble, relabelled, tmp_path)


def test_members_are_copied_into_the_scope_of_a_strategy():
    models = members(2)
    ensemble = tfc.Ensemble([models[0], tfc.Teacher(models[1], class_map=[1, 0, 3, 2])], weights=[3, 1])
    expected = ensemble.logits(X).numpy()
    assert ensemble.in_scope().models == tuple(models)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        inside = ensemble.in_scope()
    assert not set(map(id, inside.models)) & set(map(id, models))
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(X).batch(len(X)))
    found = strategy.run(tf.function(inside.logits), args=(next(iter(batches)),))
    parts = strategy.experimental_local_results(found)
    assert len(parts) == 2
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-4, atol=1e-4)


# ---- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tfc.Ensemble(members(1)), "`Ensemble.teachers` must be a list of at least two teachers"),
        (lambda: tfc.Ensemble(tiny_mlp()), "a list of at least two"),
        (lambda: tfc.Ensemble([tiny_mlp(), 3]), "a Keras model, a model file, or a callable. Received: 3"),
        (lambda: tfc.Ensemble(members(2), combine="mean"), "one of probabilities, logits, correct. Received: 'mean'"),
        (lambda: tfc.Ensemble(members(2), weights=[1]), "None or 2 numbers above 0"),
        (lambda: tfc.Ensemble(members(2), weights=[1, 0]), "None or 2 numbers above 0"),
        (lambda: tfc.Ensemble(members(2), weights=[1, np.inf]), "None or 2 numbers above 0"),
        (
            lambda: tfc.Ensemble([*members(1), tiny_mlp(classes=3, name="other")]),
            r"\(4,\) of the Keras model 'member0'; \(3,\) of the Keras model 'other'",
        ),
        (lambda: tfc.Ensemble(members(2, classes=1)), "'logits' for outputs of one value"),
        (
            lambda: tfc.Ensemble([tiny_mlp(), lambda x: tf.zeros((16, 3))]).find_out_outputs(X),
            r"\(4,\) of the Keras model 'mlp'; \(3,\) of the callable '<lambda>'",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_a_member_that_gives_nan_is_named():
    ensemble = tfc.Ensemble([tiny_mlp(), lambda x: tf.fill((16, 4), np.nan)])
    with pytest.raises(ModelError, match="The teacher, the callable '<lambda>', must give finite outputs"):
        ensemble.find_out_outputs(X)


# ---- in a recipe

RECIPE = """
data: {name: digits, limit_train: 64}
train: {epochs: 1, learning_rate: 1.0e-2}
teacher:
  teachers:
    - {model: mlp, widths: [8]}
    - {model: mlp, widths: [8]}
    - {file: large.keras, resize: [12, 12]}
  weights: [1, 2, 1.5]
student: {model: mlp, widths: [4]}
stages: [distill]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a teacher file, in which runs measure no files."""
    keras.Sequential([keras.Input((12, 12, 1)), layers.Flatten(), layers.Dense(10)]).save(tmp_path / "large.keras")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "_model_figures", lambda model: {})
    return tmp_path


def test_a_recipe_stores_what_several_say_together(folder):
    recipe = tfc.parse_recipe(RECIPE)
    assert tfc.parse_recipe(recipe.to_yaml()) == recipe
    result = tfc.run(recipe, "out", progress=False)
    assert [row.stage for row in result.rows] == ["teacher-1", "teacher-2", "teacher-3", "teacher", "01-distill"]
    small = [
        keras.saving.load_model(folder / "out" / "stages" / f"00-teacher-{number}" / "model.keras") for number in (1, 2)
    ]
    assert not np.allclose(*(model.get_weights()[0] for model in small), atol=0.1)
    large, weights = keras.saving.load_model("large.keras"), np.array([1, 2, 1.5]) / 4.5

    def together(x):
        logits = [model(x) for model in small] + [large(tf.image.resize(x, (12, 12), antialias=True))]
        probabilities = np.exp([numpy_log_softmax(np.asarray(each, "float64")) for each in logits])
        return np.log(np.einsum("m,mbc->bc", weights, probabilities))

    data = tfc.load_dataset("digits", limit_train=64)
    (stored,) = (folder / "out" / "teacher").glob("*/view-000/*.npy")
    np.testing.assert_allclose(np.load(stored), together(next(data.train.batch(64).as_numpy_iterator())[0]), atol=2e-2)
    x, y = next(data.test.batch(1000).as_numpy_iterator())
    assert result.rows[3].accuracy == pytest.approx(np.mean(together(x).argmax(-1) == y), abs=2 / len(y))
    # Other weights are another teacher: its student is trained again, the members are not.
    changed = tfc.parse_recipe(RECIPE, ["teacher.weights=[1, 1, 1]"])
    with pytest.raises(RecipeError, match="'.*00-teacher' holds the result of another recipe"):
        tfc.run(changed, "out", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("stages/*/stage.json")}
    tfc.run(changed, "out", overwrite=True, progress=False)
    kept = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert kept == {"00-teacher-1", "00-teacher-2", "00-teacher-3"}


def test_a_recipe_says_how_several_are_combined(folder):
    recipe = tfc.parse_recipe(RECIPE, ["teacher.combine=correct", "teacher.weights=null"])
    teacher = plan_run(recipe, tfc.load_dataset("digits", limit_train=64)).teacher
    assert isinstance(teacher, tfc.Ensemble) and teacher.combine == "correct" and teacher.needs_labels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["teacher.teachers=[{model: mlp}]"], "`teacher.teachers` must be a list of at least two. Received: 1"),
        (["teacher.weights=[1, 2]"], "`teacher.weights` must be null, or a number above 0 for each of `teachers`"),
        (["teacher.combine=mean"], "`teacher.combine` must be one of probabilities, logits, correct"),
        (["teacher.width=8"], "`teacher.width` is not a key"),
        (["teacher.teachers.2.file=none.keras"], "`teacher.teachers.2.file` cannot be read"),
        (["teacher.teachers.2.resize=null"], "`teacher.teachers.2.file` must be a model from one input"),
        (["teacher.teachers.0.widht=3"], "`teacher.teachers.0.widht` is not a key; did you mean `width`"),
        (["train={}", "stages=[]"], "`teacher.teachers.0.train` is missing; a teacher from a family must be trained"),
        (["student=null"], "`student` is missing; an ensemble can teach, but only a Keras model can be compressed"),
        (
            ["stages.0={distill: {features: [{kind: hints, teacher_layer: a, student_layer: b}]}}"],
            "a Keras model where features are compared",
        ),
    ],
)
def test_mistakes_in_a_recipe(changes, message, folder):
    with pytest.raises(RecipeError, match=message):
        recipe = tfc.parse_recipe(RECIPE, changes)
        plan_run(recipe, tfc.load_dataset("digits", limit_train=64))
