"""The tasks by the names that `config.task` takes."""

from __future__ import annotations

from fvjax import plugins
from fvjax.tasks.attributes import FaceAttributes
from fvjax.tasks.conversation import Conversation
from fvjax.tasks.face_instruction import FaceInstruction
from fvjax.tasks.margin import Margin
from fvjax.tasks.pair_answer import PairAnswer
from fvjax.tasks.task import Task
from fvjax.tasks.verification import Verification

TASKS: dict[str, type[Task]] = {
    "contrastive": Verification,
    "margin": Margin,
    "pair_answer": PairAnswer,
    "conversation": Conversation,
    "attributes": FaceAttributes,
    "face_instruction": FaceInstruction,
}


def get(name: str) -> type[Task]:
    """Return the task of a name, or a class of the user's own by `module:Class`. Raises ValueError: there is none."""
    task = plugins.load(name) if plugins.is_spec(name) else TASKS.get(name)
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise ValueError(
            f"config.task={name!r}: not a task; choose {', '.join(TASKS)}, or module:Class of a fvjax Task"
        )
    return task
