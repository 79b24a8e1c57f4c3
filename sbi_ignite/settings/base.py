"""The base class of all settings: frozen values, checked on construction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from inspect import Parameter, Signature
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self, override

from sbi_ignite.exceptions import ArgumentError, SettingsError
from sbi_ignite.html import table
from sbi_ignite.settings.errors import translate
from sbi_ignite.settings.field_types import from_text
from sbi_ignite.settings.frozen_dict import content_hash
from sbi_ignite.settings.origin import Origin
from sbi_ignite.settings.redaction import in_words, shorten

__all__ = ["Settings"]


class Settings(BaseModel):
    """A frozen group of settings, checked on construction and hashable by content.

    Fields are keywords; a wrong value or a misspelt name raises `SettingsError`. `model_fields_set`
    holds the fields that were passed, so that None differs from "not passed".
    `value.model_copy(update={"field": ...})` gives a changed, checked copy.

    Raises:
        SettingsError: If a value is wrong, a name is misspelt or one field is given twice.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names that a field goes by."""

    leading: ClassVar[tuple[str, ...]] = ()
    """Fields that may be passed by position."""

    def __init__(self, /, *args: object, **values: object) -> None:
        self._fill(_named(type(self), args, values), {})

    @override
    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        # help() would otherwise print the validators of every field
        cls.__signature__ = Signature(
            [_parameter(cls, name, info) for name, info in cls.model_fields.items()]
        )

    @classmethod
    def from_text(cls, values: Mapping[str, object], origin: Origin) -> Self:
        """Build the value from text, as the environment and files hold it.

        Args:
            values: One text per field.
            origin: Where they all came from.

        Returns:
            The checked value.

        Raises:
            SettingsError: If a text cannot be read as its field's type.
        """
        origins = {name: origin.of(name) for name in values}
        return cls.from_origins(values, origins, from_text(origin))

    @classmethod
    def from_origins(
        cls,
        values: Mapping[str, object],
        origins: Mapping[str, Origin],
        context: Mapping[str, object] | None = None,
    ) -> Self:
        """Build the value and, if it is wrong, say where each field came from.

        Args:
            values: One value per field.
            origins: Where each came from.
            context: What the validators should know; see `fields.from_text`.

        Returns:
            The checked value.

        Raises:
            SettingsError: If a value is wrong or a name is misspelt.
        """
        value = cls.__new__(cls)
        value._fill(values, origins, context)
        return value

    def _fill(
        self,
        values: Mapping[str, object],
        origins: Mapping[str, Origin],
        context: Mapping[str, object] | None = None,
    ) -> None:
        data = self.canonical(values)
        origins = {**self._other_names(values), **origins}
        try:
            self.__pydantic_validator__.validate_python(
                data, self_instance=self, context=dict(context or {})
            )
        except ValidationError as error:
            names = [*type(self).model_fields, *self.aliases]
            raise translate(error, type(self).__name__, names, origins) from None
        self._check(origins)

    @override
    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Check an instance or a mapping of fields.

        Args:
            obj: The instance or the mapping.
            **options: What pydantic's method of this name takes.

        Returns:
            The instance.

        Raises:
            SettingsError: If a value is wrong or a name is misspelt.
        """
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise translate(error, cls.__name__, [*cls.model_fields], {}) from None

    @classmethod
    def _other_names(cls, values: Mapping[str, object]) -> dict[str, Origin]:
        used = [(name, own) for name, own in cls.aliases.items() if name in values]
        return {own: Origin("call", f"{cls.__name__}({name}=...)") for name, own in used}

    def _check(self, origins: Mapping[str, Origin]) -> None:
        """Check the fields against each other.

        Args:
            origins: Where each came from.

        Raises:
            SettingsError: If they contradict each other.
        """

    def forget(self, names: Iterable[str]) -> Self:
        """Copy the value, counting some fields as not passed.

        Args:
            names: Those fields.

        Returns:
            The copy.
        """
        copied = super().model_copy()
        copied.__pydantic_fields_set__.difference_update(names)
        return copied

    @classmethod
    def canonical(cls, values: Mapping[str, object]) -> dict[str, object]:
        """Replace other names of a field by its own.

        Args:
            values: Values by any name.

        Returns:
            The values by the field's own names; unknown names stay.

        Raises:
            SettingsError: If both names of one field are given.
        """
        data: dict[str, object] = {}
        spelt: dict[str, str] = {}
        for name, value in values.items():
            field = cls.aliases.get(name, name)
            if field in data:
                raise SettingsError(
                    f"{cls.__name__}.{field} is given twice: as {spelt[field]!r} and as {name!r}"
                )
            data[field], spelt[field] = value, name
        return data

    @classmethod
    def read_text(cls, field: str, text: object, origin: Origin) -> Any:
        """Read one field as the environment or a file holds it.

        Args:
            field: The field's own name.
            text: Its value: text, or what TOML makes of it.
            origin: Where it came from.

        Returns:
            The checked value.

        Raises:
            SettingsError: If the text cannot be read as the field's type.
        """
        try:
            return _adapter(cls, field).validate_python(text, context=from_text(origin))
        except ValidationError as error:
            raise translate(error, cls.__name__, [], {field: origin}, field) from None

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the value, changing some fields, and check the copy.

        Args:
            update: New values by field name.
            deep: Whether to copy what the fields hold as well.

        Returns:
            The copy; a field counts as passed if it was here or is in `update`.

        Raises:
            SettingsError: If a new value is wrong or a name is misspelt.
        """
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        kept = {name: getattr(copied, name) for name in self.model_fields_set}
        return type(self)(**{**kept, **self.canonical(update)})

    @override
    def __setattr__(self, name: str, value: object) -> None:
        raise self._frozen(name)

    @override
    def __delattr__(self, name: str) -> None:
        raise self._frozen(name)

    def _frozen(self, name: str) -> SettingsError:
        return SettingsError(
            f"{type(self).__name__}.{name}: settings are frozen; "
            f"make a changed copy with model_copy(update={{{name!r}: ...}})"
        )

    @override
    def __hash__(self) -> int:
        return hash((type(self), content_hash(self.__dict__)))

    @override
    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        for name, info in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.model_fields_set or value != info.default:
                yield name, _Shown(shorten(value, name))

    @override
    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        """Return a table for notebooks: each field with its value and what it is for."""
        rows = (
            (name, in_words(getattr(self, name), name), info.description or "")
            for name, info in type(self).model_fields.items()
        )
        return table(type(self).__name__, rows)


def _parameter(cls: type[Settings], name: str, info: FieldInfo) -> Parameter:
    kind = Parameter.POSITIONAL_OR_KEYWORD if name in cls.leading else Parameter.KEYWORD_ONLY
    return Parameter(name, kind, default=Parameter.empty if info.is_required() else info.default)


class _Shown(str):
    """Text that is its own repr."""

    __slots__ = ()

    @override
    def __repr__(self) -> str:
        return str(self)


def _named(
    cls: type[Settings], args: tuple[object, ...], values: Mapping[str, object]
) -> dict[str, object]:
    if len(args) > len(cls.leading):
        raise ArgumentError(
            f"{cls.__name__} takes {len(cls.leading) or 'no'} values by position, "
            f"got {len(args)}; name its fields: {', '.join(cls.model_fields)}"
        )
    positional = dict(zip(cls.leading, args, strict=False))
    doubled = next((name for name in positional if name in values), None)
    if doubled is not None:
        raise ArgumentError(f"{cls.__name__}.{doubled} is given twice: by position and by name")
    return {**positional, **values}


@cache
def _adapter(cls: type[Settings], field: str) -> TypeAdapter[Any]:
    info = cls.model_fields[field]
    kind: Any = info.annotation
    if info.metadata:
        kind = Annotated[(kind, *info.metadata)]  # pyright: ignore # made at run time
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
