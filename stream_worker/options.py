"""Options that commands of more than one module take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ArtifactDir", "Json"]

ArtifactDir = Annotated[
    Path | None, typer.Option("--artifact", metavar="DIR", help="Model directory [env ECG_ARTIFACT]; default: the shipped one.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
