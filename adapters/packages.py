"""The packages that adapters patch: whether one is there, and what to say of one that cannot be patched."""

from __future__ import annotations

import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tracetune.tracer.outcomes import exception_event


class Package(NamedTuple):
    """A client or framework of others.

    Attributes:
        name: as it is imported.
        distribution: as it is installed.
        extra: of tracetune, that brings a version that its adapter knows; the adapter's name.
        adapter: the module whose `install` patches it, and gives the function that undoes that.
        recorded: what its adapter records.
    """

    name: str
    distribution: str
    extra: str
    adapter: str
    recorded: str

    def is_installed(self) -> bool:
        """Whether it can be looked for under its name; a stand-in of the program's own counts, too."""
        try:
            return find_spec(self.name) is not None
        except Exception:  # noqa: BLE001  a module without a spec, as tests put into `sys.modules`, or a broken finder
            return sys.modules.get(self.name) is not None

    def failure(self, error: BaseException) -> str:
        """What is not recorded of a package that cannot be patched: why, which one it is, and what to do."""
        event = exception_event(error)
        why = f"{event['exception.type']}: {event['exception.message']}".strip().split("\n")[0]
        version, path = self._version(), self._path()
        is_elsewhere = path is not None and not self._is_of_distribution(path)
        remedies = [
            *([f"rename {path} if it is a file of your own"] if is_elsewhere else []),
            f'install a version that the adapter knows with pip install -U "tracetune[{self.extra}]"',
            f"or pass record(instrument=[…]) without {self.extra!r}",
        ]
        return (
            f"{self.recorded} are not recorded: the adapter {self.extra!r} could not be switched on ({why:.300}); "
            f"{self.distribution} {version or 'of unknown version'} is installed"
            f"{f', and imported from {path}' if path is not None else ''}; {', '.join(remedies)}"
        )

    def _version(self) -> str | None:
        try:
            return metadata.version(self.distribution)
        except Exception:  # noqa: BLE001  a stand-in has none, and a broken installation a broken one
            return None

    def _path(self) -> Path | None:
        """Where it is imported from, or would be."""
        try:
            module = sys.modules.get(self.name)
            path = getattr(module, "__file__", None) if module is not None else None
            if path is None:
                spec = find_spec(self.name)
                path = spec.origin if spec is not None else None
            return Path(path) if path is not None else None
        except Exception:  # noqa: BLE001  as above
            return None

    def _is_of_distribution(self, path: Path) -> bool:
        try:
            return path.is_relative_to(str(metadata.distribution(self.distribution).locate_file(self.name)))
        except Exception:  # noqa: BLE001  as above
            return False
