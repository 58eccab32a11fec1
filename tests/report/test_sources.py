"""Every claim of the page leads to its figure, its rows, its file and a command that prints it."""

import re
import shlex
from dataclasses import replace

import pytest

from landscape import report
from landscape.plot import files
from landscape.report.family import Family
from landscape.report.findings import answer
from landscape.report.paper import FigureChoice, select
from landscape.report.sources import claims_of, sources, spoken_of
from landscape.report.study import StudyResults


@pytest.fixture(scope="module")
def page(folder):
    return report.write(folder, formats=()).read_text()


@pytest.mark.thorough
def test_every_link_within_the_page_has_its_place(page):
    places = re.findall(r'\bid="([^"]+)"', page)
    assert len(places) == len(set(places))
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert len(links) > 10
    assert links <= set(places)


def test_every_claim_has_a_file_with_its_digest_and_rows_of_what_it_names(folder):
    study = StudyResults.read(folder)
    family = Family.of(study)
    sections = list(select(study, FigureChoice(), family))
    said = answer(family)
    for one in (*said.findings, *said.verdicts):
        claims = one.claims if one in said.findings else claims_of(one)
        found = sources(study, sections, claims, one.setting)
        if claims:
            assert found
        rows = {anchor for source in found for anchor, _ in source.rows}
        named = {c.subject for c in claims} | {c.other for c in claims}
        assert len(rows) == len(named & set(study.rows(one.setting)))
        for source in found:
            assert (folder.root / source.path).exists()
            assert source.sha256 == study.digests[source.path.split("/")[1][:-3]]


def test_a_sentence_carries_the_variants_that_it_is_about(folder, page):
    """Choosing variants on the page pales the sentences about others."""
    study = StudyResults.read(folder)
    said = answer(Family.of(study))
    about = [spoken_of(study, one.claims) for one in (*said.findings, *said.verdicts)]
    assert any(about)
    for names in filter(None, about):
        assert set(names) <= {"SGD", "SAM", "ZSharp", "Random mask"}
        assert f' data-variants="{"|".join(names)}"' in page
    (claim,) = [c for one in said.findings for c in one.claims if c.subject == "sam"][:1]
    assert spoken_of(study, [claim])[0] == "SAM"
    assert spoken_of(study, [replace(claim, subject="", other="")]) == []


def test_the_command_beside_a_claim_prints_its_numbers(folder, tmp_path, monkeypatch):
    study = StudyResults.read(folder)
    family = Family.of(study)
    claims = answer(family).headline_claims
    (first, *_) = sources(study, list(select(study, FigureChoice(), family)), claims, "noisy")
    program, verb, source, target = shlex.split(first.command)
    assert (program, verb) == ("landscape", "convert")
    paths = files.convert(folder.root / source, tmp_path / target)
    assert paths
    assert all(path.stat().st_size > 100 for path in paths)
