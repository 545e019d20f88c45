"""Labels that people share: class balance, unknown labels, cameras and clips, by hand."""

import math

import pytest
import torch
from adversary_cases import setup


def test_weights_balance_the_classes_and_leave_out_what_is_not_known(tmp_path):
    # of two images a person: gender f 10, 12, 15 and m 11, 14; hair bald, long, short; nothing of 13, no hair of 15
    _, _, adversary, batch = setup("attributes", tmp_path, input="feature")
    assert adversary.attributes == ["gender"]  # hair has three classes of four people: it nearly names the person
    expected = {0: 10 / (2 * 6), 1: 10 / (2 * 4), 2: 10 / (2 * 6), 3: 0.0, 4: 10 / (2 * 4), 5: 10 / (2 * 6)}
    weights = adversary.sample_weights(batch)
    assert weights[:, 0].tolist() == pytest.approx([expected[int(pid)] for pid in batch.pids])
    assert adversary._bound.tolist() == pytest.approx([math.log(2)])


def test_several_labels_have_a_head_and_a_bound_each(tmp_path):
    _, _, adversary, batch = setup("attributes", tmp_path, input="feature", attributes="hair|gender")
    assert adversary._bound.tolist() == pytest.approx([math.log(3), math.log(2)])
    logits = torch.zeros(12, 5)
    losses = adversary.sample_losses(logits, batch)
    known = (adversary.labels_of(batch) >= 0).float()
    assert torch.allclose(losses, known * torch.tensor([math.log(3), math.log(2)]))
    logits[:, 1] = 100.0  # hair: long, of persons 0 and 4 of the known 0, 1, 2, 4; says nothing of gender
    hair = adversary.sample_losses(logits, batch)[:, 0]
    assert hair[batch.pids == 0].max() < 1e-6 < 90 < hair[batch.pids == 1].min()
    # balanced: one of three classes of hair, and chance (always the first class) of gender
    accuracy = adversary.figures(logits, batch)["acc_adversary_attributes"]
    assert accuracy == pytest.approx(100 * (1 / 3 + 1 / 2) / 2, rel=1e-5)


def test_cameras_are_numbered_from_zero_and_a_clip_has_one(tmp_path):
    _, _, adversary, batch = setup("camera", tmp_path, input="feature")
    assert adversary.labels_of(batch)[:, 0].tolist() == [0, 1] * 6
    batch.data["camid"] = torch.tensor([1, 0, 1])
    assert adversary.labels_of(batch)[:, 0].tolist() == [1] * 4 + [0] * 4 + [1] * 4
