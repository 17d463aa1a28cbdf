"""Random changes of training images: seeded, only of images, and never of what a model is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.optimizer.training.course import Course

from fettle.api.signature import Signature, Tensor
from fettle.api.vocabulary import Augmentation
from fettle.errors import RecipeError
from fettle.optimizer.training.augment import Augmenter, augmenter

ALL = tuple(Augmentation)
IMAGES = torch.from_numpy(np.random.default_rng(5).random((16, 3, 24, 32), np.float32))


def changed(*names: Augmentation, drawn: Sequence[int] = (0, 1, 2), images: torch.Tensor = IMAGES) -> torch.Tensor:
    """`images`, changed so."""
    return Augmenter(frozenset(names), channels_last=False).changed(images, drawn)


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_follows_from_seed_epoch_and_place_alone(name: Augmentation) -> None:
    first = changed(name)
    assert first.shape == IMAGES.shape
    assert not torch.equal(first, IMAGES)
    assert torch.equal(first, changed(name))
    for drawn in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(first, changed(name, drawn=drawn))


def test_images_with_their_channels_last_change_in_the_same_way() -> None:
    last = Augmenter(frozenset(ALL), channels_last=True).changed(IMAGES.movedim(1, -1), (0, 1, 2))
    torch.testing.assert_close(last.movedim(-1, 1), changed(*ALL))


@pytest.mark.parametrize(("name", "axis"), [(Augmentation.HORIZONTAL_FLIP, -1), (Augmentation.VERTICAL_FLIP, -2)])
def test_a_flip_mirrors_some_images_and_leaves_the_others(name: Augmentation, axis: int) -> None:
    mirrored = [torch.equal(after, before.flip(axis)) for after, before in zip(changed(name), IMAGES, strict=True)]
    same = [torch.equal(after, before) for after, before in zip(changed(name), IMAGES, strict=True)]
    assert [one or other for one, other in zip(mirrored, same, strict=True)] == [True] * 16
    assert 0 < sum(mirrored) < 16


def test_a_shift_moves_each_image_by_no_more_than_an_eighth() -> None:
    ramp = torch.stack([torch.arange(32.0).expand(24, 32), torch.arange(24.0)[:, None].expand(24, 32)])
    images = torch.cat([ramp, ramp[:1]]).expand(64, 3, 24, 32)
    moved = changed(Augmentation.SHIFT, images=images)
    distance = (moved - images)[:, :, 12, 16]  # in the middle, where no edge is
    assert (distance[:, 0].abs() <= 32 / 8 + 1e-3).all()
    assert (distance[:, 1].abs() <= 24 / 8 + 1e-3).all()
    assert distance[:, 0].abs().max() > 2
    assert moved.min() >= -1e-3
    assert moved.max() <= 31 + 1e-3, "the edge is repeated"


def test_a_crop_shows_a_part_of_the_image_and_no_less_than_four_fifths_of_each_side() -> None:
    ramp = torch.arange(32.0).expand(64, 1, 24, 32)
    cut = changed(Augmentation.CROP, images=ramp)[:, 0, 0]
    span = cut[:, -1] - cut[:, 0]
    assert (span >= 0.8 * 31 - 1).all()
    assert (span <= 31).all()
    assert span.min() < 28


def test_noise_is_small_beside_what_the_images_show() -> None:
    noise = changed(Augmentation.NOISE, images=100 * IMAGES) - 100 * IMAGES
    assert float(noise.std()) == pytest.approx(0.02 * float((100 * IMAGES).std()), rel=0.05)


IMAGE = Tensor(name="image", dtype="FP32", shape=(-1, 3, 24, 32), batch_axis=0)
TABLE = Tensor(name="table", dtype="FP32", shape=(-1, 7), batch_axis=0)
TOKENS = Tensor(name="tokens", dtype="INT64", shape=(-1, 1, 4, 4), batch_axis=0)
VOLUME = Tensor(name="volume", dtype="FP32", shape=(-1, 9, 8, 8), batch_axis=0)
LOGITS = Tensor(name="logits", dtype="FP32", shape=(-1, 10), batch_axis=0)
NO_IMAGES = "changes images: expected one floating-point input .* found "


@pytest.mark.parametrize(
    ("inputs", "example", "labels", "told"),
    [
        ([TABLE], [torch.zeros(1, 7)], None, rf"{NO_IMAGES}table FP32 \[-1, 7\]; leave it out"),
        ([TOKENS], [torch.zeros(1, 1, 4, 4, dtype=torch.int64)], None, f"{NO_IMAGES}tokens INT64"),
        ([VOLUME], [torch.zeros(1, 9, 8, 8)], None, f"{NO_IMAGES}volume FP32"),
        ([IMAGE, TABLE], [IMAGES[:1], torch.zeros(1, 7)], None, rf"{NO_IMAGES}image FP32 \[-1, 3, 24, 32\], table FP32"),
        ([IMAGE], [IMAGES[:1]], np.zeros((16, 24, 32)), r"Crop would move images and not their labels, which are \[24, 32\]"),
    ],
    ids=["a table", "tokens", "nine channels", "two inputs", "masks"],
)  # fmt: skip
def test_what_is_no_image_is_refused_and_so_are_labels_that_would_have_to_move(
    inputs: list[Tensor], example: list[torch.Tensor], labels: Any, told: str
) -> None:
    signature = Signature(inputs=tuple(inputs), outputs=(LOGITS,))
    with pytest.raises(RecipeError, match=told):
        augmenter((Augmentation.CROP,), signature, example, labels)
    assert augmenter((), signature, example, labels) is None


def test_noise_moves_nothing_and_goes_with_labels_of_places() -> None:
    signature = Signature(inputs=(IMAGE,), outputs=(LOGITS,))
    assert augmenter((Augmentation.NOISE,), signature, [IMAGES[:1]], np.zeros((16, 24, 32))) is not None


def test_only_items_that_teach_are_changed(course: Course) -> None:
    step = {"distill": {"student": {"width": 0.5}}}
    plain = course.build(step, epochs=2).training
    varied = course.build(step, epochs=2, augment=(Augmentation.SHIFT, Augmentation.NOISE)).training
    assert plain is not None
    assert varied is not None
    assert varied.original_score == plain.original_score
    assert varied.curve[0] == plain.curve[0], "before training nothing is different"
    assert varied.curve[-1] != plain.curve[-1]
