"""README and docs/: short enough to be read, and true of the repository."""

import re
from pathlib import Path

import pytest
from verl.utils.tracking import Tracking

from verl_omni import recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_has_at_most_900_words():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pages
def test_each_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_each_command_names_a_subcommand_a_recipe_and_a_make_target_that_exist(page):
    text = page.read_text()
    commands = {file.stem for file in (ROOT / "verl_omni" / "cli").glob("*.py")}
    assert set(re.findall(r"python -m verl_omni ([a-z]+)", text)) <= commands
    assert {name for name in re.findall(r"\+recipe=recipes/(\w+)\.yaml", text)} <= recipe.shipped().keys()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^ {4}make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_each_page_is_listed_in_the_index():
    listed = set(re.findall(r"\]\((\S+\.md)\)", (ROOT / "docs" / "index.md").read_text()))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_each_logger_named_is_one_that_verl_supports():
    named = re.findall(r"trainer\.logger=\[([\w,]+)\]", (ROOT / "docs" / "gpu.md").read_text())
    assert {"wandb", "swanlab", "trackio", "tensorboard", "mlflow"} <= {
        name for row in named for name in row.split(",")
    }
    for row in named:
        assert set(row.split(",")) <= set(Tracking.supported_backend) and row.startswith("console,file,"), row
