"""What the watches brought: a copy of every object Fettle looks at, found by name or by owner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from fettle.cluster.kinds import WATCHED, Object, ResourceKind
from fettle.cluster.owner import controller_of

GONE_LIMIT = 20_000
Name = tuple[str, str]  # namespace, name


def version_of(obj: Object) -> int:
    """The object's resourceVersion as a number: what is greater is newer, within one kind."""
    value = str(obj["metadata"].get("resourceVersion") or "0")
    return int(value) if value.isdigit() else 0


class Cache:
    """Objects by kind and name, as new as the newest watch event, list or own write. Callers must not change what they get.

    Watch events, lists and answers to own writes reach it in any order: the newer resourceVersion wins, and a deleted object
    (its UID) never comes back.
    """

    def __init__(self, kinds: Iterable[ResourceKind] = WATCHED) -> None:
        self._objects: dict[ResourceKind, dict[Name, Object]] = {kind: {} for kind in kinds}
        self._owned: dict[ResourceKind, defaultdict[str, set[Name]]] = {
            kind: defaultdict(set) for kind in self._objects
        }
        self._gone: dict[str, None] = {}  # UIDs, oldest first
        self._listed: set[ResourceKind] = set()

    @property
    def synced(self) -> bool:
        """Whether every kind was listed once: before that no decision is made."""
        return self._listed.issuperset(self._objects)

    def holds(self, kind: ResourceKind) -> bool:
        """Whether objects of `kind` are kept here."""
        return kind in self._objects

    def get(self, kind: ResourceKind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        return self._objects[kind].get((namespace, name))

    def all(self, kind: ResourceKind, namespace: str | None = None) -> Iterator[Object]:
        """All objects of a kind, or those of one namespace."""
        for (space, _), obj in list(self._objects[kind].items()):
            if namespace is None or space == namespace:
                yield obj

    def count(self, kind: ResourceKind) -> int:
        """How many objects of a kind there are."""
        return len(self._objects[kind])

    def owned(self, kind: ResourceKind, uid: str) -> list[Object]:
        """Objects of `kind` whose controller has this UID, by name."""
        return [self._objects[kind][name] for name in sorted(self._owned[kind].get(uid, ()))]

    def put(self, kind: ResourceKind, obj: Object) -> bool:
        """Keep `obj` unless a newer copy is known or it is gone. True when that changed anything."""
        metadata = obj["metadata"]
        if kind not in self._objects or metadata["uid"] in self._gone:
            return False
        name = (metadata["namespace"], metadata["name"])
        before = self._objects[kind].get(name)
        if before is not None:
            same = before["metadata"]["uid"] == metadata["uid"]
            if version_of(before) >= version_of(obj):
                return False
            if not same:
                self._bury(before)
            self._unlink(kind, name, before)
        metadata.pop("managedFields", None)
        self._objects[kind][name] = obj
        owner = controller_of(obj)
        if owner is not None:
            self._owned[kind][owner["uid"]].add(name)
        return True

    def drop(self, kind: ResourceKind, namespace: str, name: str, uid: str | None = None) -> bool:
        """Forget an object that was deleted; with `uid` only that one. True when it was known."""
        if uid is not None:
            self._remember_gone(uid)
        before = self._objects.get(kind, {}).get((namespace, name))
        if before is None or (uid is not None and before["metadata"]["uid"] != uid):
            return False
        self._bury(before)
        self._unlink(kind, (namespace, name), before)
        del self._objects[kind][namespace, name]
        return True

    def replace(
        self, kind: ResourceKind, items: Iterable[Object], resource_version: str, namespace: str | None = None
    ) -> list[Object]:
        """Take in a whole list (of one namespace, or of all); returns the objects that are new, changed or vanished unseen."""
        listed = list(items)
        changed = [obj for obj in listed if self.put(kind, obj)]
        present = {(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in listed}
        newest = int(resource_version) if resource_version.isdigit() else 0
        for obj in self.all(kind, namespace):
            metadata = obj["metadata"]
            # What is newer than the list was created after it was taken.
            if (metadata["namespace"], metadata["name"]) not in present and version_of(obj) <= newest:
                self.drop(kind, metadata["namespace"], metadata["name"], metadata["uid"])
                changed.append(obj)
        return changed

    def mark_listed(self, kind: ResourceKind) -> None:
        """Say that `kind` was listed in every namespace that is served."""
        self._listed.add(kind)

    def _unlink(self, kind: ResourceKind, name: Name, obj: Object) -> None:
        owner = controller_of(obj)
        if owner is None:
            return
        names = self._owned[kind][owner["uid"]]
        names.discard(name)
        if not names:
            del self._owned[kind][owner["uid"]]

    def _bury(self, obj: Object) -> None:
        self._remember_gone(obj["metadata"]["uid"])

    def _remember_gone(self, uid: str) -> None:
        self._gone[uid] = None
        while len(self._gone) > GONE_LIMIT:
            del self._gone[next(iter(self._gone))]
