"""The report of a real run: results first, each score with its step, readable on a phone and in the dark."""

import re
import shutil
from pathlib import Path

import pytest

from data_shards.errors import DataError
from gm_train.cli.main import main
from gm_train.config.load import load_config
from gm_train.run.records import METRICS, read_rows
from gm_train.run.starts import read_starts
from gm_train.train.fit import fit
from gm_train.train.run_report import make_report, write_report
from tests.conftest import Atlas, write_gene_sets
from tests.support.browser import measure, needs_browser
from tests.support.panels import panel_words


@pytest.fixture(scope="module")
def run(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with a panel, started again after step 6, and evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    sets = write_gene_sets(folder / "sets.gmt")
    words = panel_words(atlas, folder / "tiny", f"objective.pathways={sets}", "objective.pathway_size=[2, 200]")
    fit(load_config(*words, "trainer.max_steps=6"))
    fit(load_config(*words))
    wanted = ["--label", "cell_type", "--tasks", "masked,probes", "--mask-seeds", "1"]
    assert main(["eval", str(folder / "tiny"), *map(str, atlas.files), *wanted]) == 0
    return folder / "tiny"


def test_results_come_before_the_configuration(run: Path) -> None:
    page = (run / "report.html").read_text()
    headings = re.findall("<h2>([^<]*)</h2>", page)
    assert headings == ["Evaluation at step 12", "What is learned", "Training", "Configuration"]
    assert "objective masked + 0.1 x pathway loss (sets.gmt)" in page.partition("<h2>")[0]


def test_every_table_and_picture_of_scores_names_its_step(run: Path) -> None:
    page = (run / "report.html").read_text()
    scores = page.partition("What is learned")[0]
    captions = re.findall("<caption>([^<]*)</caption>", scores)
    assert len(captions) >= 4
    assert all(caption.endswith("; step 12") for caption in captions)
    figures = re.findall("<figcaption>([^<]*)</figcaption>", scores)
    assert len(figures) == 3
    assert all(caption.endswith(", step 12") for caption in figures)
    assert "order control" in scores
    assert page.count('<td data-label="step">12</td>') == 3  # the scores of the panel
    losses = re.findall("<td>[^<]* loss</td><td>([^<]*)</td>", page)
    assert len(losses) == 5
    assert all(re.search(r"nats at step \d+$", loss) for loss in losses)


def test_it_shows_speed_waiting_restarts_and_cost(run: Path) -> None:
    page = (run / "report.html").read_text()
    for title in (
        *("loss", "language loss", "pathway loss", "gradient norm", "learning rate", "throughput"),
        *("model flop/s", "waiting for the loader"),
    ):
        assert f'alt="curve: {title}"' in page
    assert "<td>restarts</td><td>1, after step 6</td>" in page
    assert re.search(r"<td>cost</td><td>[\d.e-]+ core-hours, \d+% of it in the steps recorded here</td>", page)
    assert "<td>skipped steps</td><td>0 (rollbacks: 0)</td>" in page
    assert "left out: the peak of a CPU stands on no data sheet" in page
    assert all(row["flops"] > 0 for row in read_rows(run / METRICS) if "loss" in row)
    first, second = read_starts(run)
    assert (first["device"], first["step"], second["step"]) == ("cpu", 0, 6)
    assert first["last_row"] == max(row["time"] for row in read_rows(run / METRICS) if row["step"] <= 6)


def test_the_page_needs_no_network_and_no_script(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert set(re.findall('src="([^,]*),', page)) == {"data:image/png;base64"}


def test_making_a_report_writes_nothing(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "tiny"))
    for path in (*copy.glob("*.png"), copy / "report.html"):
        path.unlink()
    before = sorted(copy.rglob("*"))
    report = make_report(copy)
    assert sorted(copy.rglob("*")) == before
    write_report(copy)
    assert {path.name for path in copy.glob("*.png")} == set(report.pictures)
    assert (copy / "report.html").read_text() == report.page()


_FITS = """{
  inner: innerWidth, page: document.documentElement.scrollWidth, background: getComputedStyle(document.body)
  .backgroundColor, pictures: [...document.images].map(image => image.getBoundingClientRect().width),
  out: [...document.querySelectorAll("td, caption, p, li")].filter(part => part.innerText
  && part.getBoundingClientRect().right > innerWidth).length,
  headings: [...document.querySelectorAll("td[data-label]")].filter(part => getComputedStyle(part).display === "flex")
  .length }"""


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it(run: Path, dark: bool, tmp_path: Path) -> None:
    found = measure(run / "report.html", 390, dark, _FITS, tmp_path)
    assert found["inner"] == 390
    assert found["page"] <= 390
    assert found["out"] == 0
    assert min(found["pictures"]) >= 280
    assert found["headings"] > 0  # tables are cards here
    assert (found["background"] == "rgb(255, 255, 255)") == (not dark)


@needs_browser
def test_a_desktop_shows_tables_and_panels_side_by_side(run: Path, tmp_path: Path) -> None:
    script = """[document.documentElement.scrollWidth,
      getComputedStyle(document.querySelector("td[data-label]")).display,
      new Set([...document.querySelectorAll("div.panels img")].map(i => i.getBoundingClientRect().left)).size]"""
    width, display, columns = measure(run / "report.html", 1300, False, script, tmp_path)
    assert (width, display) == (1300, "table-cell")
    assert columns >= 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", "{\n{}\n", r"metrics\.jsonl: its line 1 is damaged"),
        ("environment.json", '{"starts": [3]}', r"environment\.json: is damaged"),
        ("config.yaml", "nonsense: 1\n", "not a configuration of this version"),
    ],
)
def test_a_damaged_record_is_named(name: str, content: str, message: str, run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "tiny"))
    (copy / name).write_text(content)
    with pytest.raises(DataError, match=message):
        make_report(copy)
