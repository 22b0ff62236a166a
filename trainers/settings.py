"""What settings of trainers have in common: they are checked as they are told, and refuse what they do not know."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tracetune.errors import InvalidInput


class TrainerSettings(BaseModel):
    """Settings of a trainer.

    Attributes:
        trainer: its name, for messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trainer: ClassVar[str]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Settings from keyword arguments.

        Raises:
            InvalidInput: if one is unknown or cannot be used.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise InvalidInput(f"the {cls.trainer} trainer has no setting {name!r}; it has {known}") from error
            if not name:
                raise InvalidInput(str(first["ctx"]["error"])) from error
            raise InvalidInput(f"the {cls.trainer} trainer's {name} is {first['input']!r}; {first['msg']}") from error
