"""Small run folders as the tools write them, and readers of HTML and Markdown for the tests of the report."""

import html.parser
import json
import re

import numpy as np

from ppreid_plugin.dp.ledger import Ledger
from ppreid_plugin.dp.mechanisms import build_mechanism
from ppreid_plugin.dp.plan import ReleaseTerms
from ppreid_plugin.dp.release import release_gallery
from ppreid_plugin.dp.transforms import build_transform
from ppreid_plugin.dp.units import GalleryRows

ENVIRONMENT = {"torch": "2.7.1", "python": "3.11.0", "device": "CPU, 9 cores", "commit": "abc1234"}


def write(path, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def ranking(rank1):
    return {"rank1": rank1, "mAP": rank1 / 2, "mINP": rank1 / 4, "cmc": [rank1], "num_valid_queries": 10}


def enrolled(rank1):
    return {"rank1": rank1, "mrr": rank1 + 0.01, "num_people": 4, "rows_median": 3.0, "rows_largest": 5}


def train_record(rank1=0.5, seed=1, target="synthetic_pedestrians", **changes):
    points = [{"fpir": 0.01, "tpir": None}, {"fpir": 0.1, "tpir": 0.111}]
    protected = {
        "anonymous": ranking(rank1 / 2),
        "enrolled": enrolled(0.678),
        "open_set": {"points": points},
        "clean_anonymous": None,
        "clean_enrolled": enrolled(0.789),
        "clean_open_set": None,
        "person_epsilon": {"median_rows": 33.25, "largest_rows": 44.5},
        "mechanism": "gaussian",
        "epsilon": 16.0,
        "delta": 1e-5,
        "noise": "research",
        "unit": "image",
    }
    return {
        "command": ["tools/train.py", "--root", "data", "train.seed", str(seed), "data.save_dir", f"log/{seed}"],
        "targets": {target: {"clean": ranking(rank1), "protected": [protected]}},
        "seed": seed,
        "environment": ENVIRONMENT,
        **changes,
    }


def figure(score, floor, clean, leakage, **changes):
    known = leakage is not None
    return {
        "score": score,
        "low": score - 0.01,
        "high": score + 0.02,
        "floor": floor,
        "clean": clean,
        "leakage": leakage,
        "attacker": "logistic",
        "leakage_low": leakage - 0.03 if known else None,
        "leakage_high": leakage + 0.04 if known else None,
        "reason": None if known else "clean features reach 0.500, less than 3 standard errors",
        "others": {"eer": 0.4321},
        "clean_others": {"eer": 0.1234},
        **changes,
    }


def leakage_record(release="museum-0001", sha256="", **changes):
    roc = {"fpr": [0.0, 0.001, 0.1, 1.0], "tpr": [0.0, 0.01, 0.2, 1.0], "clean_tpr": [0.1, 0.3, 0.8, 1.0]}
    protection = {"release": release, "epsilon": 8.0, "unit": "image", "protocol": "enrolled", "mechanism": "gaussian"}
    protection |= {"sha256": sha256}
    return {
        "channels": {
            "identification": figure(0.125, 0.05, 0.9, 0.0875),
            "linkage": figure(0.561, 0.5, 0.97, 0.131, roc=roc),
            "attributes": {"hair": figure(0.555, 0.5, 0.777, 0.198), "hat": figure(0.51, 0.5, 0.5, None)},
            "camera": figure(0.306, 0.25, 0.812, 0.1),
        },
        "task_max": {"channel": "linkage", "leakage": 0.131, "low": 0.101, "high": 0.171},
        "non_task_max": {"channel": "attributes: hair", "leakage": 0.198, "low": 0.168, "high": 0.238},
        "meta": {
            "seeds": 3,
            "protection": protection,
            "command": ["tools/measure_leakage.py", "--seeds", "3"],
            "environment": ENVIRONMENT,
        },
        **changes,
    }


def sweep_record(**changes):
    rows = [
        {
            "mechanism": "privunit_g",
            "params": {},
            "unit": unit,
            "protocol": "enrolled",
            "epsilon": epsilon,
            "delta": 0.0,
            "person_epsilon": [epsilon * 3, epsilon * 5],
            "seed": seed,
            "rank1": epsilon / 100 + seed / 1000,
            "mAP": epsilon / 50,
            "tpir": None,
            "chosen_on": "nothing",
            "prior_cell": None,
            "prior_is_public": False,
            "bound": 0.4711 if unit == "person" else None,
        }
        for unit in ("image", "person")
        for epsilon in (4.0, 8.0)
        for seed in (1, 2, 3)
    ]
    return {"rows": rows, "command": ["tools/sweep.py", "--seeds", "3"], "environment": ENVIRONMENT, **changes}


def audit_record(**changes):
    row = {
        "parameters": {},
        "mechanism": "gaussian",
        "noise": "research",
        "epsilon": 4.0,
        "delta": 1e-5,
        "epsilon_lower": 3.751,
        "epsilon_lower_95": 3.852,
        "epsilon_exact": None,
        "rows_changed": 0,
        "trials": 100000,
        "passed": True,
    }
    return {"rows": [row | changes], "command": ["tools/audit.py"], "environment": ENVIRONMENT}


def people(rows=6, count=8, d=16, seed=0):
    """Features of people around centers, over three cameras, with names of rows."""
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, count + 1), rows)
    features = (rng.normal(size=(count + 1, d))[pids] + 0.2 * rng.normal(size=(len(pids), d))).astype(np.float32)
    camids = np.tile(np.arange(rows) % 3, count)
    names = [
        f"{pid:04d}_c{camid + 1}s1_{place:06d}_00.jpg"
        for place, (pid, camid) in enumerate(zip(pids, camids, strict=True))
    ]
    return {"features": features, "pids": pids, "camids": camids, "row_ids": np.array(names)}


def release(tmp_path, arrays, name="museum", truth_out=None, epsilon=8.0, **terms):
    """A whole release of these rows in ``tmp_path/runs``."""
    chosen = {"protocol": "enrolled", "controller": "Museum of Trains", "purpose": "finding lost children",
              "expires": "2999-12-31", **terms}  # fmt: skip
    out = tmp_path / "runs" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    release_gallery(
        GalleryRows(arrays["features"], arrays["row_ids"].tolist(), arrays["pids"], arrays["camids"]),
        out,
        ledger=Ledger(tmp_path / "ledger", "default", epsilon=epsilon, delta=1e-5),
        mechanism=build_mechanism("gaussian", epsilon=8.0, delta=1e-5),
        transform=build_transform("center").fit(people(seed=9)["features"]),
        terms=ReleaseTerms(name=name, model="sha256:1", **chosen),
        truth_out=truth_out,
    )
    return out


class Reader(html.parser.HTMLParser):
    """Reads tables, texts and everything that could load something from a page."""

    def __init__(self):
        super().__init__()
        self.tables, self.texts, self.tags, self.loads, self._cell = [], [], [], [], None

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [
            value for name, value in attributes if name in ("src", "href", "data", "action", "srcset", "poster")
        ]
        self.loads += [value for name, value in attributes if name.startswith("on")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, text):
        self.texts.append(text)
        if self._cell is not None:
            self._cell.append(text)

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def read_html(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def read_markdown_tables(path):
    """Tables of a Markdown page, cells as they are shown."""
    tables, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            tables.append([])
        inside = True
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set(cells) != {"---"}:
            tables[-1].append([re.sub(r"\\(.)", r"\1", cell).replace("&amp;", "&") for cell in cells])
    return tables
