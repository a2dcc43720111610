"""The README's program runs as printed, and its commands are those of the continuous integration."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_first_program_prints_what_the_readme_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    got, want = capsys.readouterr().out.splitlines(), blocks("text")[0].splitlines()
    assert len(got) == len(want) == 3
    # The last digits of an accuracy and of an error depend on the width of the machine's vectors.
    assert abs(float(got[0].split()[-1]) - float(want[0].split()[-1])) < 0.02
    assert got[1] == want[1] == "parameters 44878 -> 44426"
    assert got[2].split(" - ")[0] == want[2].split(" - ")[0] == "the same network: True"


def test_ci_calls_the_readmes_test_command():
    pattern = re.search(r"grep -m 1 '(.*)' README.md", (ROOT / ".ci" / "run").read_text())[1]
    commands = [line for line in README.splitlines() if re.match(pattern, line)]
    assert "-m pytest -q" in commands[0]


def test_every_file_has_its_place_in_the_code_organisation():
    table = README.split("## Code organisation")[1]
    for folder in ("fastbn", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT / folder)
            known = path.name in table or any(
                f"`{parent.name}/`" in table or f"{parent}/`" in table for parent in place.parents
            )
            assert known or path.name == "__init__.py", place
