"""The page for a data-protection impact assessment: what a manifest and measured leakage say, and what they cannot.

It fills in the technical part of an assessment as in Article 35 GDPR. Necessity, legal basis and the decision are
the controller's; the page names them as open. ``docs/data-protection.md`` explains it. This is no legal advice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date
from pathlib import PurePath
from typing import Any

from .blocks import Block, Bullets, Missing, Page, Provenance, Section, Table, Text
from .collect import Collected, Source, reading
from .sections import where_from
from .tables import leakage_figures, leakage_table, percent, protection_words
from .words import budget_in_words, largest_epsilon, leakage_in_words, not_covered, protected_in_words

_OPEN = "not in the manifest: to be written by the controller"
_NO_LEAKAGE = Missing(
    "No measured leakage of this release was found: an assessment without it rests on ε alone.",
    "python tools/measure_leakage.py --release RELEASE --truth TRUTH --train train.npz --clean gallery.npz --out "
    "RUN/leakage.json",
)


def assessment(found: Collected, made_here: Provenance) -> Page:
    """Return the page for the releases that were found.

    Args:
        found: releases, and leakage records; those of a release by its name stand beside it.
        made_here: provenance of the report itself.
    """
    sections: list[Section] = [_what_this_is(found)]
    for number, source in enumerate(found.releases, start=1):
        with reading(source):
            sections.append(_release(source, found, number))
    sections += [_personal_data(found), _reveals(found), _erasure(found), _open_points()]
    sections.append(where_from(Collected(releases=found.releases, leakage=found.leakage), [made_here]))
    subtitle = "Made from release manifests and measured leakage. A draft of the technical part; no legal advice."
    return Page("Data-protection impact assessment", subtitle, sections)


def _what_this_is(found: Collected) -> Section:
    names = ", ".join(str(source.record["release"]) for source in found.releases)
    return Section(
        "What this is",
        "about",
        [
            Text(
                f"The technical facts that an assessment under Article 35 GDPR needs about {names}: galleries of "
                "person re-identification features, released under differential privacy. Features that single people "
                "out are biometric data where they serve to identify them (Article 4(14), Article 9)."
            ),
            Text("Whether the processing is allowed, needed and proportionate is not decided here."),
        ],
    )


def _release(source: Source, found: Collected, number: int) -> Section:
    manifest = source.record
    rows = [
        ["controller", str(manifest.get("controller") or _OPEN)],
        ["purpose", str(manifest.get("purpose") or _OPEN)],
        ["retention", _retention(manifest.get("expires"))],
        ["drawn", ", ".join(f"{part.get('created', '?')}: {part['rows']} rows" for part in manifest["parts"])],
        ["rows, people", f"{manifest['rows']}, {manifest.get('people', 'not recorded')}"],
        ["opted out", f"{manifest.get('opted_out', 0)} people"],
        ["unit of privacy, protocol", f"{manifest['unit']}, {manifest['protocol']}"],
        ["published beside the rows", _columns(manifest)],
        ["mechanism", _mechanism(manifest)],
        ["ε, δ", f"{_epsilon(manifest)}, {manifest['delta']:g}"],
        ["budget of the scope", _scope(manifest["scope"])],
        ["fitted on training people, and published", _fitted(manifest)],
        ["encoder", str(manifest["model"])],
    ]
    blocks: list[Block] = [
        Text(protected_in_words(manifest)),
        Table("From the manifest", ["what", "stated"], rows, sources=(source.origin,)),
        Text("ε in words:"),
        Bullets(budget_in_words(manifest)),
    ]
    measured = [one for one in found.leakage if _is_of(one, manifest)]
    for one in measured:
        said = leakage_in_words(one.record)
        blocks += [Text("Measured by attackers:"), Bullets(said)] if said else []
        blocks.append(leakage_table(one))
    if not measured:
        blocks.append(_NO_LEAKAGE)
    twice = sum(one.record["release"] == manifest["release"] for one in found.releases) > 1
    place = f", {PurePath(source.origin.file).parent}" if twice else ""
    return Section(f"Release {manifest['release']}{place}", f"release-{number}", blocks)


def _personal_data(found: Collected) -> Section:
    enrolled = any(source.record["protocol"] == "enrolled" for source in found.releases)
    items = [
        "The released rows: pseudonymized (Article 4(5)), not anonymous. They were made to be matched with people, and "
        "whoever has a picture of a person can try.",
        "The images, and the clean features of gallery, queries and training people: unprotected, as before.",
        "The ledger and the map from released rows to labels (--truth-out): they name rows and people. Keep them apart "
        "from the release.",
        "Transform, codebook and encoder: fitted on training people, whom no ε of a release covers.",
    ]
    if enrolled:
        items.insert(
            1, "pids, row ids and, where they are published, camera labels of the enrolled protocol: in the clear."
        )
    return Section("What remains personal data", "personal-data", [Bullets(items)])


def _reveals(found: Collected) -> Section:
    items = [
        "A clean query reveals as much as its image: it is matched as it is, and whoever sees queries learns who was "
        "looked for, when, and what he looked like. No ε covers queries.",
        "A pid ties a person's rows together. Whoever knows one of them knows how many there are, and the promise for "
        "a person is the total of all of them. In the anonymous protocol no pid is published.",
        "Camera labels, row ids and the order of file names tell where, and often when, a person was. With a map of "
        "the cameras that is a track of movements.",
        "The number of rows and people, and that somebody is in the gallery at all, are not hidden.",
    ]
    blocks: list[Block] = [Bullets(items)]
    for source in found.leakage:
        with reading(source):
            told = [
                _measured(name, figure)
                for name, figure in leakage_figures(source.record)
                if name.split(":")[0] in ("camera", "identification", "linkage")
            ]
            if told:
                blocks += [Text(f"Measured on {protection_words(source.record)}:"), Bullets(told)]
    blocks += [Text("Not covered, as the manifests say:"), Bullets(not_covered([s.record for s in found.releases]))]
    return Section("What clean queries, pids and camera labels reveal", "reveals", blocks)


def _erasure(found: Collected) -> Section:
    rows = [
        [
            "the image and its clean features",
            "delete the files; extracted features: delete the files of tools/extract_features.py",
        ],
        [
            "a row of a release",
            "a release is never edited: delete it (tools/ledger.py purge) and draw a new one without the person "
            "(tools/release_gallery.py --opt-out PID --new-release). That spends budget of everybody else again, and "
            "refunds nothing",
        ],
        [
            "a search index",
            "rebuild it from the new release; an index that only marks rows as deleted still holds them",
        ],
        [
            "caches and copies of one's own",
            "feature caches, ranked pictures (visrank), TensorBoard logs and projector files, reports with pictures "
            "or maps, backups",
        ],
        [
            "the map from rows to labels",
            "delete the person's entries; without it a row of an anonymous release cannot be found",
        ],
        ["the ledger", "its records stay: what was spent has been spent. They name row ids and pids"],
        [
            "the encoder",
            "a person of the training set stays in weights, transform and codebook until these are made anew",
        ],
    ]
    expired = [
        str(source.record["release"])
        for source in found.releases
        if isinstance(source.record.get("expires"), str) and source.record["expires"] < date.today().isoformat()
    ]
    blocks: list[Block] = [Table("Erasure (Article 17)", ["what", "how"], rows)]
    if expired:
        blocks.append(Text(f"Past its retention date, and still here: {', '.join(expired)}.", strong=True))
    blocks.append(
        Text(
            "Copies of a release that were already given out cannot be recalled. ε holds for them for good, and "
            "nothing else does.",
            strong=True,
        )
    )
    return Section("Retention and erasure", "erasure", blocks)


def _open_points() -> Section:
    items = [
        "Legal basis, and for biometric data the exception of Article 9(2) that applies.",
        "Necessity: what would be lost with fewer rows, a smaller ε, the person unit, or without a gallery.",
        "Who gets the release, and under which contract; where copies go.",
        "How people are told, and how they object, get access and opt out.",
        "Security of images, ledger, map and queries, which no ε covers.",
        "What a wrong match does to a person, and who checks matches before anything is done.",
        "Whether the remaining risk is acceptable; if it is high, consultation under Article 36.",
    ]
    return Section(
        "Left to the controller", "open", [Text("None of this can be read from a manifest:"), Bullets(items)]
    )


def _is_of(source: Source, manifest: Mapping[str, Any]) -> bool:
    """Return whether attackers had this very release: ledgers number theirs alike, so a name is not enough."""
    protection = (source.record.get("meta") or {}).get("protection") or {}
    if protection.get("release") != manifest["release"]:
        return False
    told = protection.get("sha256")
    return bool(told == manifest["file"]["sha256"]) if told else False


def _epsilon(manifest: Mapping[str, Any]) -> str:
    largest = largest_epsilon(manifest)
    return f"{largest:g}" + ("" if largest == manifest["epsilon"] else f" at most ({manifest['epsilon']:g} by default)")


def _retention(expires: Any) -> str:
    if not expires:
        return f"no date; {_OPEN}"
    past = " (past)" if str(expires) < date.today().isoformat() else ""
    return f"until {expires}{past}; then delete the release: tools/ledger.py purge"


def _columns(manifest: Mapping[str, Any]) -> str:
    names = {"row_id": "row ids", "pids": "pids", "camids": "camera labels", "epsilon": "budgets of rows"}
    return ", ".join(text for name, text in names.items() if name in manifest["arrays"])


def _mechanism(manifest: Mapping[str, Any]) -> str:
    mechanism = manifest["mechanism"]
    if not isinstance(mechanism, Mapping):
        return str(mechanism)
    kept = {
        name: value for name, value in mechanism.items() if isinstance(value, (int, float, str)) and name != "mechanism"
    }
    return f"{mechanism.get('mechanism')} ({', '.join(f'{name} {value}' for name, value in kept.items())})"


def _scope(scope: Mapping[str, Any]) -> str:
    epsilon = scope.get("epsilon")
    total = "no limit" if epsilon is None or math.isinf(epsilon) else f"ε {epsilon:g}, δ {scope.get('delta') or 0:g}"
    return f"{scope.get('name')}: {total} for each {scope.get('unit')}, over all releases of the scope"


def _fitted(manifest: Mapping[str, Any]) -> str:
    transform, prior = manifest["transform"], manifest.get("prior")
    said = f"transform {transform.get('transform')} ({transform.get('fitted_rows', 'no')} rows)"
    if not prior:
        return said
    behind = prior.get("people_behind")
    people = (
        f"{behind:.3g} people behind a published vector" if isinstance(behind, (int, float)) else "people not counted"
    )
    return f"{said}; prior of {prior.get('source') or 'a source that was not named'}, {people}"


def _measured(name: str, figure: Mapping[str, Any]) -> str:
    said = (
        f"{name}: {percent(figure['score'])} % (95 %: {percent(figure['low'])} to "
        f"{percent(figure['high'])}); without looking {percent(figure['floor'])} %"
    )
    return f"{said}; on clean features {percent(figure['clean'])} %." if figure["clean"] is not None else f"{said}."
