"""Write the reference pages that are made from the code, and the table of values in the chart's README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from fettle.api.generated import write
from tools.docs import commands, metrics, settings, values

ROOT = Path(__file__).parents[2]
REFERENCE = Path("docs/reference")
CHART = Path("charts/fettle")


def pages(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Each file, relative to the repository, with what it must hold."""
    table = values.table((root / CHART / "values.yaml").read_text(encoding="utf-8"))
    yield REFERENCE / "cli.md", commands.page()
    yield REFERENCE / "settings.md", settings.page(table)
    yield REFERENCE / "metrics.md", metrics.page()
    readme = CHART / "README.md"
    yield readme, values.between_marks((root / readme).read_text(encoding="utf-8"), table)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit status 1 if a file differs.")
def main(check: bool) -> None:
    """Write docs/reference/{cli,settings,metrics}.md and the chart's README."""
    write([(ROOT / path, text) for path, text in pages()], check=check)


if __name__ == "__main__":
    main()
