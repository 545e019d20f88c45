"""Reconstruction: as good as ridge where that is all there is, at its floor where there is nothing, never from people
that were held out."""

import dataclasses

import numpy as np
import pytest
import torch
from pictured import pictured
from sklearn.linear_model import Ridge

from ppreid_plugin import DPGallery
from ppreid_plugin.leakage import ATTACKS, ArrayImages, ReconstructionAttack, inversion, measure_leakage
from ppreid_plugin.leakage.image_scores import mean_over_people, ssim
from ppreid_plugin.leakage.inversion import fit_inversion, split_people
from ppreid_plugin.leakage.inversion_decoder import (
    PENALTIES,
    InversionDecoder,
    fit_constant,
    fit_decoder,
    fit_linear,
    held_out_ssim,
    to_images,
)
from ppreid_plugin.leakage.protection import protect
from ppreid_plugin.suppression import LightDecoder, Pixelate

STEPS = 2


def attacked(train, test, **options):
    attack = ReconstructionAttack(seed=1, steps=STEPS, **options).fit(train)
    return attack, attack.attack(test)[""]


def score_of(made, rows):
    return mean_over_people(ssim(made.clamp(0, 1), to_images(rows.images.load())).double().numpy(), rows.pids)[0]


@pytest.fixture(scope="module")
def linear():
    train, test = pictured(36, seed=1), pictured(30, seed=2)
    return train, test, *attacked(train, test)


def test_what_is_linear_is_found_as_well_as_by_ridge(linear):
    train, test, attack, figure = linear
    oracle = Ridge(alpha=0.1).fit(train.features, to_images(train.images.load()).flatten(1).numpy())
    made = torch.from_numpy(oracle.predict(test.features)).float().view(-1, 3, 64, 32)
    wanted = score_of(made, test)
    assert wanted > 0.5 + attack.floor(test)[""]
    assert figure.score > 0.95 * wanted
    assert figure.score < attack.ceiling(test)[""] == 1.0
    assert score_of(attack.reconstruct(test.features), test) == pytest.approx(figure.score, abs=1e-5)


def test_others_stand_beside(linear):
    train, test, _, figure = linear
    images = to_images(test.images.load())
    mean = to_images(attack_rows(train).images.load()).mean(0)
    assert figure.others["mean_image_ssim"] == pytest.approx(score_of(mean.expand_as(images), test), abs=1e-5)
    assert figure.others["target_ssim"] == pytest.approx(score_of(Pixelate()(images), test), abs=1e-5)
    assert figure.others["psnr"] > figure.others["mean_image_psnr"] + 5
    assert (figure.others["people"], figure.others["rows"]) == (30, 150)
    assert "rank1" not in figure.others
    assert 0 < figure.standard_error < 0.05


def test_the_floor_is_the_image_that_was_learned_without_features(linear):
    _, test, attack, _ = linear
    other = ReconstructionAttack()
    other._inversion = dataclasses.replace(attack._inversion, constant=torch.full((3, 64, 32), 0.3))
    assert other.floor(test)[""] == pytest.approx(score_of(torch.full((len(test), 3, 64, 32), 0.3), test), abs=1e-5)


def attack_rows(train):
    return split_people(train, 1)[0]


def test_features_without_information_are_at_the_floor():
    train, test = pictured(36, seed=1, independent=True), pictured(30, seed=2, independent=True)
    attack, figure = attacked(train, test)
    assert abs(figure.score - attack.floor(test)[""]) < 3 * figure.standard_error
    assert figure.score < 0.3 * (1 + attack.floor(test)[""])


def test_noise_lowers_it_step_by_step(linear):
    scores = [linear[3].score]
    for noise in (2.0, 8.0):
        train, test = pictured(36, seed=1, noise=noise), pictured(30, seed=2, noise=noise)
        attack, figure = attacked(train, test)
        scores.append(figure.score)
    assert scores[0] > scores[1] + 0.1
    assert scores[1] > scores[2] + 0.05
    assert scores[2] > attack.floor(test)[""]


def test_a_decoder_finds_what_is_not_linear():
    """Images that depend on the size of a column, not its sign: regression sees nothing in it."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 2)).astype(np.float32)
    stripes = np.sign(np.sin(np.arange(64)))[:, None, None] * np.ones((64, 32, 3))
    size = np.where(np.abs(features[:, 0]) > 0.67, 1.0, -1.0)
    images = ArrayImages((127.5 + 60 * size[:, None, None, None] * stripes).astype(np.uint8))
    rows = dataclasses.replace(pictured(60, rows_each=2).with_features(features), images=images)
    learned, held = split_people(rows, 1)
    pixels = learned.images.load()
    held_out = torch.from_numpy(held.features), to_images(held.images.load())
    constant = to_images(pixels).mean(0)
    regressions = list(fit_linear(iter([learned.features]), pixels, constant))
    decoder = InversionDecoder(regressions[0])
    before = held_out_ssim(decoder, held_out)
    assert before == pytest.approx(held_out_ssim(regressions[0], held_out))  # it starts as the regression
    reached = fit_decoder(decoder, lambda _: learned.features, pixels, held_out, steps=30, seed=1)
    assert reached > before + 0.2
    assert held_out_ssim(decoder, held_out) == pytest.approx(reached)


def test_a_decoder_that_learns_wrongly_is_left_as_it_was():
    rows = pictured(12)
    learned, held = split_people(rows, 1)
    pixels = learned.images.load()
    held_out = torch.from_numpy(held.features), to_images(held.images.load())
    decoder = InversionDecoder(next(fit_linear(iter([learned.features]), pixels, to_images(pixels).mean(0))))
    before = held_out_ssim(decoder, held_out)
    reached = fit_decoder(decoder, lambda _: learned.features, 255 - pixels[::-1].copy(), held_out, steps=4, seed=1)
    assert held_out_ssim(decoder, held_out) == reached == pytest.approx(before, abs=1e-3)


def test_regression_is_that_of_scikit_learn():
    rows = pictured(20, noise=1.0)
    pixels = rows.images.load()
    wanted = to_images(pixels).flatten(1).numpy()
    draws = [rows.features, rows.features + 0.1]
    for penalty, model in zip(
        PENALTIES,
        fit_linear(iter(draws), pixels, to_images(pixels).mean(0)),
        strict=True,
    ):
        scale = float(model.scale)
        inputs = np.concatenate([(draw - draws[0].mean(0)) / scale for draw in draws])
        oracle = Ridge(alpha=penalty * len(inputs), fit_intercept=False)
        oracle.fit(inputs, np.tile(wanted - wanted.mean(0), (2, 1)))
        np.testing.assert_allclose(model.weight.numpy(), oracle.coef_.T, atol=2e-4)


def test_held_out_people_are_never_trained_on(monkeypatch):
    train = protect(pictured(24, marked=True), DPGallery("gaussian", epsilon=30.0).fit(pictured(24).features), 1)
    learned, held = split_people(train, 1)
    assert set(learned.pids.tolist()) | set(held.pids.tolist()) == set(range(1, 25))
    assert not set(learned.pids.tolist()) & set(held.pids.tolist())
    assert len(np.unique(held.pids)) == 4
    seen = {}
    for name in ("fit_constant", "fit_linear", "fit_decoder"):
        original = getattr(inversion, name)

        def spy(*args, _name=name, _original=original, **kwargs):
            pixels = next(one for one in args if getattr(one, "dtype", None) == torch.uint8)
            seen.setdefault(_name, set()).update(pixels[:, 0, 0, 0].tolist())
            return _original(*args, **kwargs)

        monkeypatch.setattr(inversion, name, spy)
    fit_inversion(train, steps=1, seed=1)
    assert sorted(seen) == ["fit_constant", "fit_decoder", "fit_linear"]
    assert all(pids == set(learned.pids.tolist()) for pids in seen.values())


def test_fresh_noise_is_drawn_each_epoch_and_never_that_of_the_rows(monkeypatch):
    plain = pictured(8)
    train = protect(plain, DPGallery("gaussian", epsilon=30.0).fit(plain.features), seed=10_001)
    asked, draws = [], []
    redraw, fit = train.redraw, inversion.fit_decoder
    train = dataclasses.replace(train, redraw=lambda seed: asked.append(seed) or redraw(seed))
    monkeypatch.setattr(
        inversion,
        "fit_decoder",
        lambda decoder, draw, *rest, **more: draws.append(draw) or fit(decoder, draw, *rest, **more),
    )
    fit_inversion(train, steps=1, seed=1)
    assert min(asked) >= 1_000_000
    clean, noised, alone = draws
    np.testing.assert_array_equal(clean(0), split_people(train, 1)[0].clean)
    np.testing.assert_array_equal(clean(0), clean(1))
    for drawn in (noised, alone):
        assert np.abs(drawn(0) - drawn(1)).max() > 0.01


def test_a_row_is_reconstructed_the_same_in_any_company(linear):
    _, test, attack, _ = linear
    together = attack.reconstruct(test.features)
    np.testing.assert_allclose(attack.reconstruct(test.features[:1]), together[:1], atol=1e-5)
    assert 0 <= float(together.min()) <= float(together.max()) <= 1


def test_the_same_seed_says_the_same():
    train = protect(pictured(8), DPGallery("gaussian", epsilon=30.0).fit(pictured(8).features), seed=1)
    first, again = (fit_inversion(train, steps=1, seed=1) for _ in range(2))
    assert (first.name, first.held_out) == (again.name, again.held_out)
    np.testing.assert_array_equal(first(train.features), again(train.features))


def test_the_decoder_is_larger_than_that_of_stage_1():
    rows = pictured(4)
    regression = next(fit_linear(iter([rows.features]), rows.images.load(), torch.zeros(3, 64, 32)))
    attacker, defender = InversionDecoder(regression), LightDecoder((16,), 3, 64, 32)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (attacker, defender)]
    assert sizes[0] > 2 * sizes[1]


def test_the_constant_image_is_nearer_than_the_mean_by_what_it_learns():
    pixels = pictured(10).images.load()
    images = to_images(pixels)
    mean = images.mean(0)
    found = fit_constant(pixels, mean, steps=20)
    assert ssim(found.expand_as(images), images).mean() > ssim(mean.expand_as(images), images).mean()


def test_rows_are_capped_by_whole_people(monkeypatch):
    monkeypatch.setattr(inversion, "MOST_ROWS", 50)
    learned, held = split_people(pictured(24), 1)
    assert len(learned) + len(held) <= 50
    assert all(np.count_nonzero(learned.pids == pid) == 5 for pid in np.unique(learned.pids))


def test_rows_to_attack_are_the_same_for_every_seed():
    rows = pictured(24)
    chosen = [ReconstructionAttack(seed=seed, test_rows=30)._attacked(rows).row_ids for seed in (1, 2)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 30
    assert len(ReconstructionAttack(test_rows=0)._attacked(rows)) == len(rows)


def test_the_battery_makes_leakage_of_it(tmp_path):
    clean_train, clean = pictured(20, seed=1), pictured(20, seed=2)
    noised_train, noised = pictured(20, seed=1, noise=2.0), pictured(20, seed=2, noise=2.0)
    options = {"reconstruction": {"steps": 1, "test_rows": 80}}
    given = {"attacks": ["reconstruction"], "seeds": 1, "options": options, "resume": tmp_path / "finished.json"}
    found = measure_leakage(noised_train, noised, clean, clean_train, **given)
    figure = found.channels["reconstruction"]
    share = (figure["score"] - figure["floor"]) / (figure["clean"] - figure["floor"])
    assert figure["leakage"] == pytest.approx(share, rel=1e-3)
    assert 0.1 < figure["leakage"] < 0.9
    assert found.non_task_max["channel"] == "reconstruction"
    assert figure["others"]["rows"] == 80
    again = measure_leakage(noised_train, noised, clean, clean_train, **given)  # from the file
    assert again.to_json() == found.to_json()


def test_a_finished_run_of_other_images_is_not_taken(tmp_path):
    rows = pictured(6)
    options = {"reconstruction": {"steps": 1}}
    given = {"attacks": ["reconstruction"], "seeds": 1, "options": options, "resume": tmp_path / "finished.json"}
    first = measure_leakage(rows, rows, **given)
    other = dataclasses.replace(rows, images=ArrayImages(255 - rows.images.load() // 2))
    assert measure_leakage(rows, other, **given).to_json() != first.to_json()


def test_lpips_stands_beside_where_it_is_available(linear, monkeypatch):
    from ppreid_plugin.leakage import perceptual

    _, test, attack, figure = linear
    assert ("lpips" in figure.others) == (not perceptual.lpips_missing())
    monkeypatch.setattr(perceptual, "lpips_missing", lambda: "")
    monkeypatch.setattr(perceptual, "_network", lambda: lambda one, other: (one - other).square().mean((1, 2, 3)))
    others = attack.attack(test)[""].others
    assert others["lpips"] < others["mean_image_lpips"]


def test_lpips_says_why_it_is_not_available(tmp_path, monkeypatch):
    from ppreid_plugin.leakage import perceptual

    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    assert perceptual.lpips_missing().startswith("the package lpips is not installed")
    assert perceptual.lpips_distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)) is None
    monkeypatch.setattr(perceptual, "find_spec", lambda name: "there")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "has no alexnet" in perceptual.lpips_missing()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / perceptual.ALEXNET).touch()
    assert perceptual.lpips_missing() == ""


def bare(rows):
    return dataclasses.replace(rows, images=None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda rows: ReconstructionAttack().check(bare(rows), rows), ValueError, "training rows have no images"),
        (lambda rows: ReconstructionAttack().check(rows, bare(rows)), ValueError, "rows to attack have no images"),
        (lambda rows: ReconstructionAttack().fit(bare(rows)), ValueError, "training rows have no images"),
        (lambda rows: ReconstructionAttack().attack(rows), RuntimeError, "not fitted; call fit"),
        (lambda rows: ReconstructionAttack().floor(rows), RuntimeError, "not fitted; call fit"),
        (lambda rows: ReconstructionAttack().fit(rows.take(rows.pids == 1)), ValueError, "of 1 person"),
        (lambda rows: ReconstructionAttack(deid_target="pixelize"), ValueError, "Did you mean 'pixelate'"),
        (
            lambda rows: ReconstructionAttack().check(rows, dataclasses.replace(rows, pids=0 * rows.pids)),
            ValueError,
            "rows to attack are all of background pids",
        ),
        (
            lambda rows: ReconstructionAttack(judge="any").check(rows, dataclasses.replace(rows, camids=0 * rows.pids)),
            ValueError,
            "nobody with images of two cameras",
        ),
        (
            lambda rows: measure_leakage(
                rows, rows, attacks=["reconstruction"], options={"reconstruction": {"step": 1}}
            ),
            ValueError,
            "Did you mean 'steps'",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(pictured(3))


def test_it_is_registered():
    assert ATTACKS.get("reconstruction") is ReconstructionAttack
    assert not ReconstructionAttack.task


def test_a_target_that_learns_first_is_refused():
    with pytest.raises(ValueError, match="deid_target is 'mean_image', which learns from training images first"):
        ReconstructionAttack(deid_target="mean_image")


@pytest.mark.gpu
@pytest.mark.parametrize("noised", [False, True], ids=["clean rows", "protected rows"])
def test_a_gpu_inverts_as_well_as_the_cpu(monkeypatch, noised):
    """Rounding and dropout differ, so figures are compared, not images; the ridge regression is exact on both."""
    train = pictured(24)
    if noised:
        train = protect(train, DPGallery("gaussian", epsilon=200.0).fit(train.features), seed=1)
    found = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(inversion, "compute_device", lambda device=device: torch.device(device))
        found[device] = fit_inversion(train, steps=60, seed=1)
    assert found["cuda"].held_out == pytest.approx(found["cpu"].held_out, abs=0.02)
    made = {device: one(train.features) for device, one in found.items()}
    assert not made["cuda"].is_cuda
    assert score_of(made["cuda"], train) == pytest.approx(score_of(made["cpu"], train), abs=0.02)
    torch.testing.assert_close(found["cuda"].constant, found["cpu"].constant, atol=1e-3, rtol=0)


def test_who_knows_more_chooses_among_more(monkeypatch):
    """Clean rows may mislead, so a decoder that never saw them competes: the best on held-out people counts."""
    rows = pictured(24, seed=3)
    turned = rows.with_features(rows.features[:, ::-1].copy(), clean=rows.features)
    fit = inversion.fit_decoder
    for best, name in ((1, "decoder, clean rows first"), (2, "decoder")):
        reached = iter([0.0, *(1.0 if place == best else 0.0 for place in (1, 2))])
        monkeypatch.setattr(inversion, "fit_decoder", lambda *args, **kwargs: fit(*args, **kwargs) * 0 + next(reached))  # noqa: B023
        found = fit_inversion(turned, steps=STEPS, seed=1)
        assert (found.name, found.held_out) == (name, 1.0)
        assert next(reached, None) is None  # from clean rows, from these first, and from the rows
