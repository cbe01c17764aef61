"""What the recipes of all trainings have in common: checked settings whose defaults are the published ones."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import TypeVar

from panderm_utils.manifests import SEED, Rule
from panderm_utils.protocols.training.errors import TrainingError

Kind = TypeVar("Kind", bound="Recipe")


class Recipe:
    """The base of frozen dataclasses with a published default for every setting, among them `epochs` and `seed`."""

    def check(self, rules: Mapping[str, Rule], further: Iterable[str] = ()) -> None:
        """Raises TrainingError listing the settings that break their rule, and `further` problems."""
        remedies = {name: rule.remedy(getattr(self, name)) for name, rule in {**rules, "seed": SEED}.items()}
        wrong = [f"{name} {getattr(self, name)!r}: {remedy}" for name, remedy in remedies.items() if remedy]
        if wrong := [*wrong, *further]:
            raise TrainingError(f"invalid recipe: {'; '.join(wrong)}")

    def differences(self) -> dict:
        """Returns the settings that differ from the published recipe: {name: value}."""
        published = asdict(type(self)())
        return {name: value for name, value in asdict(self).items() if value != published[name]}


def build_recipe(kind: type[Kind], changes: Mapping) -> Kind:
    """Returns the published recipe of a kind with some settings changed.

    Raises:
        TrainingError: An unknown name, or an invalid value.
    """
    valid = [field.name for field in fields(kind)]
    if unknown := [name for name in changes if name not in valid]:
        raise TrainingError(f"unknown recipe settings {', '.join(unknown)}; write any of {', '.join(valid)}")
    return kind(**changes)
