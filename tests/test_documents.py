"""README and docs/: short enough to be read, and true of the repository."""

import argparse
import ast
import re
import shlex
import sys
import textwrap
import tomllib
from importlib import import_module
from importlib.util import find_spec

import pytest
from documents import PAGES, ROOT, Command, blocks, commands
from torch.distributed.run import get_args_parser
from verl.utils.tracking import Tracking

from verl_omni.recipe import composed

MAKEFILE = (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv")
MARKERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
# What a reader is told of a command that no test runs.
TOLD = re.compile(r"\bon GPUs\b|\bneeds? .*(GPU|corpora|checkpoint|download)|\b(minutes?|hours?)\b", re.IGNORECASE)
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_command = pytest.mark.parametrize("command", commands(), ids=lambda c: f"{c.page.name}: {c.text}")


def test_the_readme_has_at_most_900_words():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pages
def test_each_relative_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("command", {c.text: c for c in commands()}.values(), ids=lambda command: command.text)
def test_each_command_is_one_that_its_program_takes(command: Command, monkeypatch):
    monkeypatch.chdir(ROOT)
    if command.is_setting:
        composed("r1omni", command.words)
    else:
        parse(*command.words, monkeypatch=monkeypatch)


class ParsedError(Exception):
    """A program has read its arguments, and goes no further."""


def parse(*words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a command's arguments by its own parser; compose a recipe by Hydra."""
    match words:
        case ("make", target, *variables):
            rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
            assert rule, f"make has no {target}"
            for variable in variables:
                [module] = re.findall(r"-m (.*) \$\(ARGS\)", rule[1])
                arguments = shlex.split(variable.removeprefix("ARGS="))
                parse("python", "-m", *module.split(), *arguments, monkeypatch=monkeypatch)
        case ("torchrun", *arguments):
            given = get_args_parser().parse_args(arguments)
            assert given.module
            parse("python", "-m", given.training_script, *given.training_script_args, monkeypatch=monkeypatch)
        case (_, "-m", "pytest", "-m", expression):
            assert set(re.findall(r"\w+", expression)) - {"not"} <= {re.match(r"\w+", marker)[0] for marker in MARKERS}
        case ("python", "-m", "verl.trainer.main_ppo" | "verl.trainer.sft_trainer" as trainer, recipe, *overrides):
            config = composed(recipe.removeprefix("+recipe="), overrides)
            assert ("actor_rollout_ref" in config) == (trainer == "verl.trainer.main_ppo")
        case ("python", "-m", module, *arguments):
            original = argparse.ArgumentParser.parse_args

            def parse_args(*args, **options):
                original(*args, **options)
                raise ParsedError

            monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
            monkeypatch.setattr(sys, "argv", [module, *arguments])
            with pytest.raises(ParsedError):
                package = find_spec(module).submodule_search_locations is not None
                import_module(f"{module}.__main__" if package else module).main()
        case ("pip", "install", "-r", file):
            assert (ROOT / file).is_file()
        case _:
            assert words[0] in ("pip", "source", "hf", "python3.12"), "nobody reads this command's arguments"


@each_command
def test_each_command_is_run_by_a_test_or_the_reader_is_told_what_it_takes(command: Command):
    """A test runs what it asks for by ``documented``; CI has its own commands, and ``make test`` its prerequisites."""
    tests = "".join(file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
    files = [ROOT / ".ci" / "run", *(ROOT / ".github" / "workflows").glob("*.yml")]
    prerequisites = re.search(r"^test: (.*)", MAKEFILE, re.MULTILINE)[1].split()
    run = "".join(file.read_text() for file in files) + "".join(f"make {name}\n" for name in prerequisites)
    asked = [part for _, part in re.findall(r"""documented\((["'])(.+?)\1\)""", tests)]
    by_test = command.is_setting or command.text in run or any(part in command.text for part in asked)
    assert by_test or TOLD.search(command.said)


@pytest.mark.parametrize("block", [b for b in blocks() if b.is_python], ids=lambda block: block.page.name)
def test_python_in_a_page_imports_what_is_there_and_gives_what_its_comments_say(block):
    text, names = textwrap.dedent(block.text), {}
    for statement in ast.parse(text).body:
        source = ast.get_source_segment(text, statement)
        if isinstance(statement, ast.ImportFrom):
            exec(source, names)
        elif value := re.search(rf"{re.escape(source)} +# (.*)", text):
            assert eval(source, names) == ast.literal_eval(value[1])


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
