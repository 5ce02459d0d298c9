"""The commands in the documents' code blocks: what a reader types, and what is said of it.

A test that runs one of them takes it from here by ``documented``: the document is the only place where it is written.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"\n\n((?: {4}.*\n)+)")  # commands and Python are indented, data is fenced
PROGRAMS = ("python", ".venv/bin/python", "python3.12", "pip", "make", "torchrun", "hf", "source")
SETTING = re.compile(r"[+~]{0,2}[a-z][\w.]*=")


@dataclass(frozen=True)
class Block:
    """Lines of a page, and what a reader is told before them: headings and the paragraph."""

    page: Path
    text: str
    said: str

    @property
    def is_python(self) -> bool:
        return self.text.startswith(("    from ", "    import "))


@dataclass(frozen=True)
class Command:
    """A command of a block, or overrides of a recipe.

    Attributes:
        words: as a shell has them, without variables before the program and without what may be left out ([...]).
        said: what a reader is told: before the block, and in the comment behind the command.
    """

    page: Path
    text: str
    words: tuple[str, ...]
    said: str

    @property
    def is_setting(self) -> bool:
        return SETTING.match(self.words[0]) is not None


@cache
def blocks() -> tuple[Block, ...]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if re.match(r" {4,}[-*|] ", match[1]):  # a list goes on
                continue
            before = text[: match.start()]
            title, *others = re.findall(r"^#+ (.*)$", before, re.MULTILINE)
            found.append(Block(page, match[1], "\n".join([title, *others[-1:], before.rpartition("\n\n")[2]])))
    return tuple(found)


@cache
def commands() -> tuple[Command, ...]:
    found = []
    for block in blocks():
        for line in [] if block.is_python else re.sub(r"\\\n\s*", "", block.text).splitlines():
            text, _, comment = line.partition("  # ")
            for part in map(str.strip, text.split(" && ")):
                words = shlex.split(re.sub(r"\s\[[^\]]*\]", "", part))
                while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    del words[0]
                if words[0] in PROGRAMS or SETTING.match(words[0]):  # and not what a program prints
                    found.append(Command(block.page, part, tuple(words), f"{block.said}\n{comment}"))
    return tuple(found)


def documented(part: str) -> list[str]:
    """The words of the one command with ``part`` in it, for this interpreter and any working directory."""
    [(program, *words)] = {command.words for command in commands() if part in command.text}
    programs = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}
    return [sys.executable, *programs[program], *(word.replace("=recipes/", f"={ROOT}/recipes/") for word in words)]
