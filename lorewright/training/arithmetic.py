"""In which arithmetic the frozen layers multiply while an adapter is trained.

Bfloat16 where the base is large, in float32 on a CPU, and this processor is measured to multiply
faster in it; float32 elsewhere. Which of them a write chose stands in its checkpoint, so that it
goes on as it began, and in its card. Certificates are never in bfloat16: what training thinks is
recalled is audited in the arithmetic that serves, and a write that fails the audit goes on in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorewright.errors import ConfigError
from lorewright.models.backends.backend import Pass
from lorewright.models.backends.reduced import Reduced
from lorewright.models.model import Model
from lorewright.models.reducing import worth
from lorewright.training.config import AUTO, BFLOAT16, FLOAT32, WriteConfig


def choose(model: Model, configs: Sequence[WriteConfig]) -> tuple[str, str]:
    """The arithmetic of a write, and a sentence on why where that is worth saying.

    Raises ConfigError when the writes of one stack want different ones, or bfloat16 where no
    backend of the base has it.
    """
    wanted = sorted({config.arithmetic for config in configs})
    if len(wanted) > 1:
        raise ConfigError(
            f"the writes of one stack multiply in {', '.join(wanted)}; write them separately."
        )
    times = worth(model) if wanted == [AUTO] else 0.0
    if wanted == [FLOAT32] or (wanted == [AUTO] and not times):
        return FLOAT32, ""
    if not model.backend(Pass(reduced=Reduced())).reduces:
        if wanted == [AUTO]:
            return FLOAT32, ""
        raise ConfigError(
            "training in bfloat16 needs a base in float32 on a CPU and no DoRA; "
            f"{model.name!r} runs in {model.runs_in()}; use arithmetic auto."
        )
    if wanted == [BFLOAT16]:
        return BFLOAT16, ""
    return BFLOAT16, f"frozen layers multiply in bfloat16, {times:.1f} times as fast here"
