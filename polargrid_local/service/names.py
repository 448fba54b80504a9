"""ModelNames: which model of this disk a requested name means."""

from __future__ import annotations

from collections import defaultdict

from polargrid_local.errors import NotFoundError
from polargrid_local.models.adapters import split_name, unknown_adapter
from polargrid_local.models.store import Store
from polargrid_local.service.settings import ModelSettings, ServiceSettings


class ModelNames:
    """`configured`: id -> the name or path in the settings, of the models that are loaded at the start. `adapters`: id
    -> the names of its adapters. `own_settings`: id -> those of that model alone.

    Raises NotFoundError and InvalidModelError, as the store does, for a model in the settings that cannot be found."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.store = Store(settings.models_dir)
        self.aliases = settings.aliases
        self.on_demand = settings.on_demand
        self.configured: dict[str, str] = {}
        for name in settings.model:
            found = self.store.resolve(name)
            taken = self.configured.get(found.id)
            same = taken is None or self.store.resolve(taken).path == found.path
            # Of two files with one name the engine knows the second by its path, so that is its id here too.
            self.configured[found.id if same else str(found.path)] = name
        self.adapters: dict[str, list[str]] = defaultdict(list)
        for title in settings.adapters:
            base, adapter = split_name(title)
            self.adapters[self.store.resolve(settings.source(base)).id].append(adapter)
        self.own_settings: dict[str, ModelSettings] = {
            self.store.resolve(settings.source(model)).id: own for model, own in settings.models.items()
        }

    def find(self, name: str | None) -> str:
        """The id behind a requested name, of a model or as "model:adapter" of one of its adapters, never a path; the
        first configured model, or the store's default, for None.

        Raises NotFoundError, code model_not_loaded, for an unknown name."""
        if name is None:
            name = next(iter(self.configured), None) or self.store.default()
        untagged = name.removesuffix(":latest")  # Ollama's clients add this to every name without a tag
        model = (
            self._known(self.aliases.get(name, name))
            or self._known(self.aliases.get(untagged, untagged))
            or self._known(self.aliases.get("*"))
        )
        if model is None:
            hint = f"; polargrid-local pull {name} would fetch it" if self.store.catalog.find(name) else ""
            raise NotFoundError(
                f"Model not loaded: '{name[:200]}' is not on this machine{hint}", code="model_not_loaded", param="model"
            )
        return model

    def _known(self, name: str | None) -> str | None:
        if name is None:
            return None
        if (model := self._model(name)) is not None:
            return model
        base, adapter = split_name(name)
        model = self._model(self.aliases.get(base, base)) if base else None
        if model is None or not (known := self.adapters.get(model)):
            return None
        if adapter not in known:
            raise unknown_adapter(base, adapter, known)
        return f"{model}:{adapter}"

    def _model(self, name: str) -> str | None:
        if name in self.configured:
            return name
        try:
            model = self.store.resolve(name, paths=False).id
        except NotFoundError:
            return None
        return model if self.on_demand or model in self.configured else None

    def model_of(self, id: str) -> str:
        """The id of the model in memory that answers for an id: of an adapter, its model."""
        base, adapter = split_name(id)
        return base if adapter in self.adapters.get(base, ()) else id

    def source(self, model: str) -> str:
        """What the engine loads for an id: a configured model's own name or path."""
        return self.configured.get(model, model)
