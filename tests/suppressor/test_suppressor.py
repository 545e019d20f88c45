"""The suppressor: its map against numpy, its losses against loops, what it takes out of people it has not seen."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression

from ppreid_plugin.aware.contrastive import supervised_contrastive
from ppreid_plugin.dp.transforms import build_transform, transform_from_state
from ppreid_plugin.retrieval import evaluate
from ppreid_plugin.suppressor import Suppressor, SuppressorFit
from ppreid_plugin.suppressor.fitting import SuppressorNetwork


def people(count=120, *, seed=0, dim=16, each=6, shown=2.0):
    """Rows around a center a person; two attributes shift the center along directions of their own."""
    mixing = np.linalg.qr(np.random.default_rng(99).normal(size=(dim, dim)))[0]
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(count, dim))
    labels = np.stack([rng.permutation(count) % 2, rng.permutation(count) % 3], axis=1)
    centers[:, 0] += shown * (2 * labels[:, 0] - 1)
    centers[:, 1:4] += shown * np.eye(3)[labels[:, 1]]
    pids = np.repeat(np.arange(count) + 7, each)
    rows = (centers.repeat(each, 0) + 0.4 * rng.normal(size=(len(pids), dim))) @ mixing + 1.5
    return rows, pids, labels.repeat(each, 0)


FAST = {"hidden": 32, "epochs": 40, "batch": 360, "lr": 3e-3}


def learned(rows, labels, others, other_labels):
    return LogisticRegression(max_iter=3000).fit(rows, labels).score(others, other_labels)


def mean_ap(rows, pids):
    return evaluate(rows, rows, pids, pids, np.arange(len(rows)), np.arange(len(rows))).mAP


def test_takes_out_of_new_people_what_was_named_and_keeps_matching():
    rows, pids, labels = people()
    others, other_pids, other_labels = people(seed=1)
    fitted = Suppressor(**FAST).fit_people(rows, pids, labels[:, :1])
    plain = Suppressor(erasure=0.0, **FAST).fit_people(rows, pids, labels[:, :1])
    made, kept = fitted.transform(others), plain.transform(others)
    assert learned(rows, labels[:, 0], others, other_labels[:, 0]) > 0.9
    assert learned(plain.transform(rows), labels[:, 0], kept, other_labels[:, 0]) > 0.9
    assert learned(fitted.transform(rows), labels[:, 0], made, other_labels[:, 0]) < 0.65
    assert learned(fitted.transform(rows), labels[:, 1], made, other_labels[:, 1]) > 0.75  # not named
    assert mean_ap(made, other_pids) > mean_ap(others, other_pids) - 0.05


def test_the_map_is_the_formula():
    rows, pids, labels = people(20)
    fitted = Suppressor(hidden=5, epochs=3, batch=40).fit_people(rows, pids, labels)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centered = unit - unit.mean(0)
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    inner = np.maximum(centered @ fitted.hidden.T + fitted.hidden_bias, 0)
    wanted = centered @ fitted.linear.T + inner @ fitted.out.T + fitted.out_bias
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.transform(3 * rows), wanted, atol=1e-12)
    assert np.abs(fitted.out).max() > 0
    assert np.abs(fitted.linear - np.eye(16)).max() > 1e-3
    np.testing.assert_allclose(fitted.transform(rows[4:5]), wanted[4:5], atol=1e-12)  # row by row


@pytest.mark.parametrize("hidden", [0, 3])
def test_the_network_starts_as_the_identity(hidden):
    rows = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    torch.testing.assert_close(SuppressorNetwork(4, hidden)(rows), rows)


def test_losses_are_those_of_the_docstring():
    torch.manual_seed(0)
    made, given, proxies = (torch.nn.functional.normalize(torch.randn(n, 4), dim=1) for n in (8, 8, 3))
    who, labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0]), torch.tensor([[0, 1], [0, -1], [1, 2], [1, 0]] * 2)
    fit = SuppressorFit(erasure=2.0, contrast=3.0, distillation=5.0, temperature=0.2)
    values = torch.randn(8, 2)
    terms = fit._matching(made, given, proxies, who) | fit._suppression(made, labels, [2, 3], values)
    assert {name: weight for name, (weight, _) in terms.items()} == {
        "identity": 1.0, "contrast": 3.0, "erasure": 2.0, "image_erasure": 300.0, "distillation": 5.0,
    }  # fmt: skip
    distances = []
    for column, count in zip(labels.T, (2, 3), strict=True):
        means = torch.stack([made[column == one].mean(0) for one in range(count)])
        distances.append(sum((mean - means.mean(0)).square().sum() for mean in means) / count)
    similar = sum(((made[i] @ made[j] - given[i] @ given[j]) ** 2) for i in range(8) for j in range(8)) / 64
    scores = (16 * made @ proxies.T).log_softmax(1)
    identity = -sum(0.9 * scores[i, who[i]] + 0.1 * scores[i].mean() for i in range(8)) / 8
    wanted = {"identity": identity, "contrast": supervised_contrastive(made @ made.T, who, 0.2),
              "erasure": sum(distances) / 2, "distillation": similar,
              "image_erasure": sum(torch.cov(torch.stack([made[:, i], values[:, j]]), correction=0)[0, 1] ** 2
                                   for i in range(4) for j in range(2))}  # fmt: skip
    for name, (_, loss) in terms.items():
        torch.testing.assert_close(loss, wanted[name], msg=name)


@pytest.mark.parametrize("name", ["erasure", "distillation"])
def test_a_weight_pulls_its_loss_down(name):
    rows, pids, labels = people(60)
    settings = {
        "hidden": 8,
        "epochs": 25,
        "batch": 180,
        "lr": 1e-2,
        "erasure": 0.0,
        "contrast": 0.0,
        "distillation": 0.0,
    }
    base = Suppressor(**settings).fit_people(rows, pids, labels).losses[-1]
    more = Suppressor(**{**settings, name: 40.0}).fit_people(rows, pids, labels).losses[-1]
    assert more[name] < 0.8 * base[name]


def test_numbers_are_suppressed_alone_and_their_scale_does_not_matter():
    rows, pids, labels = people(60)
    numbers = rows @ np.random.default_rng(3).normal(size=(16, 2)) + 5
    settings = {"hidden": 8, "epochs": 30, "batch": 180, "lr": 1e-2}
    kept, gone = (
        Suppressor(image_erasure=weight, **settings).fit_people(rows, pids, numbers=numbers) for weight in (0.0, 300.0)
    )
    again = Suppressor(image_erasure=300.0, **settings).fit_people(rows, pids, numbers=1000 * numbers)
    np.testing.assert_allclose(again.transform(rows), gone.transform(rows), atol=1e-3)
    others, _, other_labels = people(60, seed=1)
    sought = others @ np.random.default_rng(3).normal(size=(16, 2))

    def explained(one):  # of other people's numbers, by least squares that learned from these
        return LinearRegression().fit(one.transform(rows), numbers - 5).score(one.transform(others), sought)

    assert explained(kept) > 0.6
    assert explained(gone) < 0.3
    assert "erasure" not in gone.losses[-1]
    assert learned(gone.transform(rows), labels[:, 0], gone.transform(others), other_labels[:, 0]) > 0.7
    assert spread(gone.transform(rows), pids) < 1.5 * spread(kept.transform(rows), pids)


def test_nothing_to_suppress_and_numbers_that_are_none():
    rows, pids, _ = people(20)
    with pytest.raises(ValueError, match="nothing to suppress. Give concepts"):
        Suppressor().fit_people(rows, pids)
    with pytest.raises(ValueError, match=r"numbers has shape \(3, 2\)"):
        Suppressor().fit_people(rows, pids, numbers=np.ones((3, 2)))
    fitted = Suppressor(epochs=1, hidden=2).fit_people(rows, pids, numbers=np.ones((len(rows), 1)))
    assert np.isfinite(fitted.transform(rows)).all()  # constant numbers


def test_the_contrastive_loss_pulls_people_together():
    rows, pids, labels = people(60)
    settings = {"hidden": 8, "epochs": 25, "batch": 180, "lr": 1e-2, "erasure": 0.0, "distillation": 0.0}
    apart, together = (Suppressor(**settings, contrast=weight).fit_people(rows, pids, labels) for weight in (0.0, 40.0))
    assert "contrast" not in apart.losses[-1]
    assert spread(together.transform(rows), pids) < 0.9 * spread(apart.transform(rows), pids)


def spread(rows, pids):
    """Mean squared distance of a person's rows from their mean, over that of people's means from theirs."""
    own = [rows[pids == pid] for pid in np.unique(pids)]
    means = np.stack([one.mean(0) for one in own])
    within = np.mean([((one - one.mean(0)) ** 2).sum(1).mean() for one in own])
    return within / ((means - means.mean(0)) ** 2).sum(1).mean()


def test_a_file_gives_the_same_rows(tmp_path):
    rows, pids, labels = people(20)
    fitted = Suppressor(hidden=4, epochs=2).fit_people(rows, pids, labels)
    path = fitted.save(tmp_path / "one.safetensors")
    again = build_transform(f"suppressor:{path}")
    np.testing.assert_array_equal(again.transform(rows), fitted.transform(rows))
    np.testing.assert_array_equal(
        transform_from_state("suppressor", fitted.state()).transform(rows), fitted.transform(rows)
    )
    assert again.describe() == {"transform": "suppressor", "fitted_rows": 120, "columns": 16, "hidden": 4}
    with pytest.raises(ValueError, match="columns"):
        again.transform(rows[:, :9])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        build_transform(f"suppressor:{path}")


def test_is_deterministic_and_leaves_other_generators_alone():
    rows, pids, labels = people(20)
    before = torch.random.get_rng_state()
    one, two, other = (
        Suppressor(hidden=4, epochs=2, seed=seed).fit_people(rows, pids, labels).transform(rows) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_rows_of_unknown_label_are_not_pushed():
    rows, pids, labels = people(40)
    half = labels[:, :1].copy()
    half[pids % 2 == 0] = -1
    settings = {"hidden": 0, "epochs": 8, "contrast": 0.0, "distillation": 0.0, "batch": 240}
    a = Suppressor(**settings).fit_people(rows, pids, half)
    shuffled = np.where(half < 0, -1, 5 + 2 * half)  # classes count, not their numbers
    np.testing.assert_array_equal(Suppressor(**settings).fit_people(rows, pids, shuffled).linear, a.linear)
    assert np.abs(Suppressor(**settings).fit_people(rows, pids, labels[:, :1]).linear - a.linear).max() > 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pids": np.arange(120)}, "pids names 120 people in 120 rows"),
        ({"pids": np.zeros(120, dtype=int)}, "pids names 1 people"),
        ({"pids": np.zeros(119, dtype=int)}, r"pids has shape \(119,\)"),
        ({"concepts": np.zeros((120, 1), dtype=int)}, "column 0 has 1 class"),
        ({"concepts": np.zeros(120, dtype=int)}, "one column a concept"),
        ({"features": np.full((120, 4), np.nan)}, "NaN"),
    ],
)
def test_refuses(change, message):
    rows, pids, labels = people(20)
    with pytest.raises(ValueError, match=message):
        Suppressor(epochs=1).fit_people(**{"features": rows, "pids": pids, "concepts": labels, **change})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden": -1}, "hidden is -1, must be a whole number >= 0"),
        ({"epochs": 0}, "epochs is 0, must be a whole number >= 1"),
        ({"batch": 1}, "batch is 1, must be a whole number >= 2"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0, must be a finite number >= 0"),
        ({"erasure": -1.0}, "erasure is -1.0, must be a finite number >= 0"),
        ({"lr": float("nan")}, "lr is nan, must be a finite number > 0"),
        ({"distillation": float("inf")}, "distillation is inf, must be a finite number >= 0"),
        ({"temperature": "0.3"}, "temperature is '0.3', must be a finite number > 0"),
        ({"erasures": 1.0}, "has 'erasures'; allowed: .*Did you mean 'erasure'"),
    ],
)
def test_refuses_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        Suppressor(**setting)


def test_what_was_not_fitted_says_so():
    with pytest.raises(RuntimeError, match="fit_people"):
        Suppressor().transform(np.ones((2, 3)))
    with pytest.raises(ValueError, match="fit_people"):
        Suppressor().fit(np.ones((2, 3)))
