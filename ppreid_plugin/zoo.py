"""torchreid's trained models: ``zoo:NAME`` downloads a file into torchreid's cache, checks it and names its place.

Names are ``MODEL_DATASET``; ``_combineall`` marks models trained on all of MSMT17, which torchreid publishes for
cross-domain use. No weights are shipped here: the links are those of torchreid's model zoo page.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from yacs.config import CfgNode

from .registry import closest

PREFIX = "zoo:"

# Google Drive file by name: torchreid's MODEL_ZOO.md
FILES: dict[str, str] = {
    "resnet50_market1501": "1dUUZ4rHDWohmsQXCRe2C_HbYkzz94iBV",
    "resnet50_dukemtmcreid": "17ymnLglnc64NRvGOitY3BqMRS9UWd1wg",
    "resnet50_msmt17": "1ep7RypVDOthCRIAqDnn4_N-UhkkFHJsj",
    "resnet50_fc512_market1501": "1kv8l5laX_YCdIGVCetjlNdzKIA3NvsSt",
    "resnet50_fc512_dukemtmcreid": "13QN8Mp3XH81GK4BPGXobKHKyTGH50Rtx",
    "resnet50_fc512_msmt17": "1fDJLcz4O5wxNSUvImIIjoaIF9u1Rwaud",
    "mlfn_market1501": "1wXcvhA_b1kpDfrt9s2Pma-MHxtj9pmvS",
    "mlfn_dukemtmcreid": "1rExgrTNb0VCIcOnXfMsbwSUW1h2L1Bum",
    "mlfn_msmt17": "18JzsZlJb3Wm7irCbZbZ07TN4IFKvR6p-",
    "hacnn_market1501": "1LRKIQduThwGxMDQMiVkTScBwR7WidmYF",
    "hacnn_dukemtmcreid": "1zNm6tP4ozFUCUQ7Sv1Z98EAJWXJEhtYH",
    "hacnn_msmt17": "1MsKRtPM5WJ3_Tk2xC0aGOO7pM3VaFDNZ",
    "mobilenetv2_x1_0_market1501": "18DgHC2ZJkjekVoqBWszD8_Xiikz-fewp",
    "mobilenetv2_x1_0_dukemtmcreid": "1q1WU2FETRJ3BXcpVtfJUuqq4z3psetds",
    "mobilenetv2_x1_0_msmt17": "1j50Hv14NOUAg7ZeB3frzfX-WYLi7SrhZ",
    "mobilenetv2_x1_4_market1501": "1t6JCqphJG-fwwPVkRLmGGyEBhGOf2GO5",
    "mobilenetv2_x1_4_dukemtmcreid": "12uD5FeVqLg9-AFDju2L7SQxjmPb4zpBN",
    "mobilenetv2_x1_4_msmt17": "1ZY5P2Zgm-3RbDpbXM0kIBMPvspeNIbXz",
    "osnet_x1_0_market1501": "1vduhq5DpN2q1g4fYEZfPI17MJeh9qyrA",
    "osnet_x1_0_dukemtmcreid": "1QZO_4sNf4hdOKKKzKc-TZU9WW1v6zQbq",
    "osnet_x1_0_msmt17": "112EMUfBPYeYg70w-syK6V6Mx8-Qb9Q1M",
    "osnet_x0_75_market1501": "1ozRaDSQw_EQ8_93OUmjDbvLXw9TnfPer",
    "osnet_x0_75_dukemtmcreid": "1IE3KRaTPp4OUa6PGTFL_d5_KQSJbP0Or",
    "osnet_x0_75_msmt17": "1QEGO6WnJ-BmUzVPd3q9NoaO_GsPNlmWc",
    "osnet_x0_5_market1501": "1PLB9rgqrUM7blWrg4QlprCuPT7ILYGKT",
    "osnet_x0_5_dukemtmcreid": "1KoUVqmiST175hnkALg9XuTi1oYpqcyTu",
    "osnet_x0_5_msmt17": "1UT3AxIaDvS2PdxzZmbkLmjtiqq7AIKCv",
    "osnet_x0_25_market1501": "1z1UghYvOTtjx7kEoRfmqSMu-z62J6MAj",
    "osnet_x0_25_dukemtmcreid": "1eumrtiXT4NOspjyEV4j8cHmlOaaCGk5l",
    "osnet_x0_25_msmt17": "1sSwXSUlj4_tHZequ_iZ8w_Jh0VaRQMqF",
    "resnet50_msmt17_combineall": "1yiBteqgIZoOeywE8AhGmEQl7FTVwrQmf",
    "osnet_x1_0_msmt17_combineall": "1IosIFlLiulGIjwW3H8uMRmx3MzPwf86x",
    "osnet_x0_75_msmt17_combineall": "1fhjSS_7SUGCioIf2SWXaRGPqIY9j7-uw",
    "osnet_x0_5_msmt17_combineall": "1DHgmb6XV4fwG3n-CnCM0zdL9nMsZ9_RF",
    "osnet_x0_25_msmt17_combineall": "1Kkx2zW89jq_NETu4u42CFZTMVD5Hwm6e",
    "osnet_ibn_x1_0_msmt17_combineall": "1q3Sj2ii34NlfxA4LvmHdWO_75NDRmECJ",
    "osnet_ain_x1_0_msmt17_combineall": "1SigwBE6mPdqiJMqhuIY4aqC7--5CsMal",
    "osnet_ibn_x1_0_market1501": "1uWW7_z_IcUmRNPqQOrEBdsvic94fWH37",
    "osnet_ain_x1_0_market1501": "14bNFGm0FhwHEkEpYKqKiDWjLNhXywFAd",
    "osnet_ibn_x1_0_dukemtmcreid": "1CNxL1IP0BjcE1TSttiVOID1VNipAjiF3",
    "osnet_ain_x1_0_dukemtmcreid": "1hypJvq8G04SOby6jvF337GEkg5K_bmCw",
}

# SHA-256 of files that were measured (docs/results.md)
SHA256: dict[str, str] = {
    "osnet_x0_25_market1501": "c0ff09177a21417a19bc73bbf5af4eb5d2b097c2074ed35e67819ee6cd93612c",
    "osnet_x0_25_msmt17": "6f57607fed9f502b9efed546108132ee715df5a5b6e6932c6269bacb47f59f99",
}


class ZooError(ValueError):
    """A model of the zoo that cannot be had; the message says which file to put where."""


def weights_of(cfg: CfgNode) -> str:
    """Return the weights that a configuration's model ends up with: a resumed run's replace those it started from."""
    return str(cfg.model.resume or cfg.model.load_weights)


def resolve(spec: str) -> str:
    """Return a local path for ``spec``: itself, or for ``zoo:NAME`` the cached file, downloaded if need be.

    Raises:
        ZooError: an unknown name (the nearest is suggested), no network, or a file with another SHA-256.
    """
    if not spec.startswith(PREFIX):
        return spec
    name = spec.removeprefix(PREFIX)
    if name not in FILES:
        raise ZooError(
            f"model.load_weights is '{spec}'; the zoo has: {', '.join(sorted(FILES))}.{closest(name, list(FILES))}"
        )
    path = cache_folder() / f"{name}.pth"
    if not path.is_file():
        _download(name, path)
    _check_hash(name, path)
    return str(path)


def cached_path(spec: str) -> str:
    """Return what `resolve` does without a download or a check: for ``zoo:NAME`` where its file is, or would be."""
    return str(cache_folder() / f"{spec.removeprefix(PREFIX)}.pth") if spec.startswith(PREFIX) else spec


def cache_folder() -> Path:
    """torchreid's own cache: ``$TORCH_HOME/checkpoints``, by default ``~/.cache/torch/checkpoints``."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "checkpoints"


def _download(name: str, path: Path) -> None:
    import gdown

    url = f"https://drive.google.com/uc?id={FILES[name]}"
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = gdown.download(url, str(part), quiet=False)
    except Exception as error:  # gdown raises its own, requests' and OS errors alike
        done, reason = None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    else:
        reason = "the server gave no file"
    if done is None:
        part.unlink(missing_ok=True)
        raise ZooError(
            f"'{PREFIX}{name}' could not be downloaded ({reason}). Fetch {url} with a browser and put the file at "
            f"'{path}', or give its path as model.load_weights."
        )
    os.replace(part, path)


def _check_hash(name: str, path: Path) -> None:
    if name not in SHA256:
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256[name]:
        raise ZooError(
            f"'{path}' has SHA-256 {digest}, expected {SHA256[name]} for {PREFIX}{name}. Remove it to download it "
            "again, or, if you trust it, give its path as model.load_weights."
        )
