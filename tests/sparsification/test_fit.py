"""Fitting a sparse detector to its dense twin, against plain least squares."""

import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from focus_detr import FocusSparsifier
from sparse_detr import SparseSparsifier
from tests.small_detectors import LAYERS, NAMES
from tests.sparsification.twins import RECORDS, twins
from tokendetr.predict import Predictor
from tokendetr.sparsification import (
    DenseTeacher,
    FewImagesError,
    FitOptions,
    NotSparsifiableError,
    StaleFitError,
    UnlabeledImages,
    agreement,
    fit,
)
from tokendetr.sparsification.scores import attention_loss, sparse_scores
from tokendetr.tokens import MassBudget

SHORT = FitOptions(score_iterations=3, distill_iterations=2, max_images=6, targets="both")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> UnlabeledImages:
    folder = tmp_path_factory.mktemp("images")
    for index in range(8):
        noise = np.random.default_rng(index).integers(0, 255, (48, 64 + 8 * (index % 3), 3))
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    inputs = Predictor(torch.nn.Identity(), min_size=48, max_size=96)
    return UnlabeledImages.from_folders([str(folder)], inputs, batch_size=2)


def test_the_teacher_sees_the_dense_encoder():
    dense, student = twins()
    seen = []
    hook = dense.transformer.encoder.register_forward_hook(lambda *args: seen.append(args[-1]))
    found = DenseTeacher(dense)(RECORDS, with_mass=True)
    hook.remove()
    assert len(found.memories) == LAYERS and torch.equal(found.memories[-1], seen[0])
    queries, heads = 12, 2
    expected = torch.full((2,), float(LAYERS * queries * heads))
    real = (found.mass_BN * found.layout.valid_BN).sum(dim=1)
    assert (real <= expected * (1 + 1e-5)).all() and (real > 0.2 * expected).all()
    student.transformer.encoder.sparsifier.set_keep_ratio(1.0)
    with torch.no_grad():
        torch.testing.assert_close(found.encode(student.transformer.encoder), found.memories[-1])


def test_scores_are_taught_the_tokens_of_most_mass():
    dense, student = twins()
    found = DenseTeacher(dense)(RECORDS, with_mass=True)
    score_BN = sparse_scores(student, found)
    expected = []
    for image in range(2):
        real = found.layout.valid_BN[image]
        mass, score = found.mass_BN[image][real], score_BN[image][real]
        best = mass.sort(descending=True, stable=True).indices[: -(-3 * len(mass) // 10)]
        target = torch.zeros_like(mass).index_fill(0, best, 1.0)
        expected.append(torch.nn.functional.binary_cross_entropy_with_logits(score, target).item())
    loss = attention_loss(score_BN, found.mass_BN, found, 0.3)
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


QUICK = ("dino", "deformable", "dab_two_stage", "dn", "h_two_stage")
"""Detectors that are fitted in every test run."""


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_every_detector_is_fitted_and_the_dense_one_left_alone(name, images):
    dense, student = twins(name)
    before = copy.deepcopy(dense.state_dict())
    untouched = {k: v.clone() for k, v in student.state_dict().items() if ".encoder." not in k}
    result = fit(dense, student, images, SHORT)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    assert all(torch.equal(student.state_dict()[k], v) for k, v in untouched.items())
    assert student.transformer.encoder.sparsifier.bypass.weight.any()
    assert result.curve[-1][1] > 0 and set(result.losses) == {"scores", "distillation"}
    with torch.no_grad():
        assert student(RECORDS)[0]["instances"].scores.isfinite().all()


@pytest.mark.parametrize("method", ["focus", "random"])
@pytest.mark.parametrize("name", ["dino", "deformable"])
def test_other_methods_are_fitted(name, method, images):
    dense, student = twins(name, method)
    result = fit(dense, student, images, SHORT)
    assert ("scores" in result.losses) == (method == "focus")


def test_a_fit_lowers_the_error_of_the_memory(images):
    dense, student = twins()
    found = DenseTeacher(dense)(RECORDS)
    real = found.layout.valid_BN

    def error():
        with torch.no_grad(), observed_pass(student):
            return (found.encode(student.transformer.encoder) - found.memories[-1])[real].norm()

    before = error()
    fit(dense, student, images, FitOptions(score_iterations=0, max_images=6))
    assert error() < 0.7 * before


def observed_pass(model):
    from tokendetr.encoder.forward_context import open_pass

    return open_pass(model)


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [("maps", 2), ("scores", 5), ("distillation", 4)])
def test_an_interrupted_fit_ends_as_an_uninterrupted_one(stop, images, tmp_path, monkeypatch):
    monkeypatch.setattr("tokendetr.sparsification.fitting._SAVED_EVERY", 3)
    options = FitOptions(score_iterations=7, distill_iterations=5, max_images=6, targets="both")
    dense, expected = twins()
    result = fit(dense, expected, images, options)
    _, student = twins()

    def interrupt(stage, done, total, value):
        if (stage, done) == stop:
            raise _StoppedError

    file = tmp_path / "state.pth"
    with pytest.raises(_StoppedError):
        fit(dense, student, images, options, state_file=file, progress=interrupt)
    _, again = twins()
    assert fit(dense, again, images, options, state_file=file) == result
    for key, value in expected.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_another_fits_state_is_refused(images, tmp_path):
    dense, student = twins()
    file = tmp_path / "state.pth"
    fit(dense, student, images, FitOptions(score_iterations=1, max_images=2), state_file=file)
    with pytest.raises(StaleFitError, match="seed: 0, now 1"):
        fit(dense, student, images, FitOptions(1, max_images=2, seed=1), state_file=file)
    with torch.no_grad():
        dense.class_embed[0].bias.add_(1.0)
    with pytest.raises(StaleFitError, match="weights: .*, now "):
        fit(dense, student, images, FitOptions(1, max_images=2), state_file=file)
    dense, student = twins(method="random")
    with pytest.raises(StaleFitError, match="its parameters and buffers: "):
        fit(dense, student, images, FitOptions(1, max_images=2), state_file=file)
    dense, student = twins()  # a budget adds no parameter, but a buffer
    student.transformer.encoder.sparsifier.mass_budget = MassBudget()
    with pytest.raises(StaleFitError, match="its parameters and buffers: "):
        fit(dense, student, images, FitOptions(1, max_images=2), state_file=file)


def test_images_of_another_size_or_content_are_other_images(images):
    files = [*images.held_back, *images.fitted]
    digests = {
        UnlabeledImages(files, Predictor(torch.nn.Identity(), min_size=size, max_size=96)).digest()
        for size in (32, 48, 48)
    }
    assert len(digests) == 2


def test_maps_see_every_image_at_most_once_and_no_more_than_the_limit(images):
    for limit, expected in ((5, 5), (2000, 6)):
        dense, student = twins()
        result = fit(dense, student, images, FitOptions(0, max_images=limit, tolerance=1e-9))
        assert result.curve[-1][0] == expected


def test_batches_depend_on_their_number_and_the_seed_alone(images):
    names = [[r["file_name"] for r in images.batch(n)] for n in range(6)]
    assert names[4] == [r["file_name"] for r in images.batch(4)]
    held = {str(path) for path in images.held_back}
    assert not held & {name for batch in names for name in batch}
    epoch = [name for batch in names[:3] for name in batch]
    assert len(images.fitted) == 6 and sorted(epoch) == sorted(map(str, images.fitted))


def test_a_sequence_of_images_may_end(images):
    assert [len(images.batch(n, 5)) for n in range(3)] == [2, 2, 1]
    assert images.batch(2, 5)[0]["file_name"] == images.batch(2)[0]["file_name"]


def test_of_too_many_images_some_are_drawn_and_a_file_counts_once(tmp_path, monkeypatch):
    for index in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    folders = [str(tmp_path), str(tmp_path / ".." / tmp_path.name)]

    def found(seed):
        images = UnlabeledImages.from_folders(folders, Predictor(torch.nn.Identity()), seed=seed)
        files = [*images.held_back, *images.fitted]
        assert len(set(files)) == len(files)
        return set(files)

    assert len(found(0)) == 9
    monkeypatch.setattr("tokendetr.sparsification.images.MOST_IMAGES", 5)
    assert len(found(0)) == 5 and found(0) == found(0) and found(0) != found(1)


def test_too_few_images_are_refused(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes(b"")
    with pytest.raises(FewImagesError, match="at least 4 readable images, got 2 of 3"):
        UnlabeledImages.from_folders([str(tmp_path)], Predictor(torch.nn.Identity()))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_a_fit_trains_wherever_it_is_called_and_leaves_no_gradients(guard, images):
    dense, student = twins()
    with guard():
        result = fit(dense, student, images, SHORT)
    assert set(result.losses) == {"scores", "distillation"}
    assert all(parameter.grad is None for parameter in student.parameters())


def test_what_a_fit_cannot_train_is_refused_before_it(images):
    for prepare, message in (
        (lambda dense, student: student.requires_grad_(False), r"frozen.*requires_grad_\(True\)"),
        (lambda dense, student: (dense.half(), student.half()), r"got torch\.float16: convert"),
        (lambda dense, student: dense.double(), r"got torch\.float32, torch\.float64: convert"),
    ):
        dense, student = twins()
        prepare(dense, student)
        with pytest.raises(NotSparsifiableError, match=message):
            fit(dense, student, images, SHORT)
        assert not student.transformer.encoder.sparsifier.bypass.weight.any()


def test_what_cannot_be_sparsified_is_refused(images):
    dense, student = twins()
    with pytest.raises(NotSparsifiableError, match="no encoder at transformer.encoder"):
        DenseTeacher(torch.nn.Linear(2, 2))
    with pytest.raises(NotSparsifiableError, match="with a bypass"):
        fit(dense, dense, images, SHORT)


def detections(boxes, scores, classes) -> Instances:
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes, dtype=torch.long)
    return found


def test_agreement_counts_shared_confident_detections():
    first = detections(
        [[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]], [0.9, 0.8, 0.2], [1, 2, 3]
    )
    near = detections([[1, 0, 10, 10], [20, 20, 40, 40]], [0.5, 0.9], [1, 1])  # another class
    assert agreement([(first, first)]) == 100
    assert agreement([(first, near)]) == pytest.approx(100 * 2 / 4)
    twice = detections([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.9], [1, 1])
    assert agreement([(first, twice)]) == pytest.approx(100 * 2 / 4)
    empty = detections([], [], [])
    assert agreement([(empty, empty)]) == 100 and agreement([(first, empty)]) == 0


def test_keep_ratio_of_focus_can_be_changed():
    sparsifier = FocusSparsifier(embed_dim=8, num_heads=2)
    sparsifier.set_keep_ratio(0.2)
    assert sum(sparsifier.budget.ratios) == pytest.approx(0.2 * 6)
    fixed = FocusSparsifier(embed_dim=8, num_heads=2, layer_ratios=[0.5] * 6)
    with pytest.raises(ValueError, match="layer_ratios"):
        fixed.set_keep_ratio(0.2)


def test_a_budget_by_mass_spends_the_ratio_on_the_mean(images):
    dense, student = twins()
    sparsifier = student.transformer.encoder.sparsifier
    sparsifier.mass_budget = MassBudget()
    fit(dense, student, images, FitOptions(score_iterations=20, max_images=6))
    sparsifier.set_keep_ratio(0.3)
    kept = tokens = 0
    for number in range(3):
        found = DenseTeacher(dense)(images.batch(number))
        plan = sparsifier.plan(found.context(student))
        token_map = plan.token_map(0, found.input_BNC)
        every = torch.ones(2, token_map.num_tokens, dtype=torch.bool)
        kept += int((every if token_map.valid_BK is None else token_map.valid_BK).sum())
        tokens += int(found.layout.valid_BN.sum())
    assert kept / tokens == pytest.approx(0.3, abs=0.03)
    with torch.no_grad():
        together = student(RECORDS)
        for single, expected in zip(RECORDS, together, strict=True):
            torch.testing.assert_close(
                student([single])[0]["instances"].scores, expected["instances"].scores
            )
    sparsifier.set_keep_ratio(1.0)
    with torch.no_grad():
        assert torch.equal(
            student(RECORDS[:1])[0]["instances"].scores, dense(RECORDS[:1])[0]["instances"].scores
        )


def test_random_tokens_have_no_mass():
    with pytest.raises(ValueError, match="selection='random' has none"):
        SparseSparsifier(selection="random", mass_budget=MassBudget())


def test_a_data_sets_name_means_its_images(tmp_path):
    for name in "abcdef":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    records = [{"file_name": str(tmp_path / f"{name}.png")} for name in "abcd"]
    DatasetCatalog.register("some_of_them", lambda: records)
    try:
        images = UnlabeledImages.from_folders(["some_of_them"], Predictor(torch.nn.Identity()))
    finally:
        DatasetCatalog.remove("some_of_them")
    assert {path.name for path in (*images.held_back, *images.fitted)} == {
        "a.png",
        "b.png",
        "c.png",
        "d.png",
    }
