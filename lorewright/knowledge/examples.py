"""Documents with facts and probes that come along: what demonstrations and studies write."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = next(
    (up / "examples" for up in Path(__file__).parents[:3] if (up / "examples").is_dir()),
    Path("examples"),
)
"""Their folder: in the installed package, or beside it in a checkout."""
