"""What the watches brought: a copy of every object Fettle looks at, found by name or by owner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from fettle.cluster.kinds import WATCHED, Object, ResourceKind
from fettle.cluster.owner import controller_of

GONE_LIMIT = 20_000
ObjectName = tuple[str, str]  # namespace, name


def number(resource_version: object) -> int | None:
    """A resourceVersion as a number: what is greater is newer, within one kind. None for what is none, which tells nothing."""
    text = str(resource_version or "")
    return int(text) if text.isascii() and text.isdigit() else None


def version_of(obj: Object) -> int | None:
    """The object's resourceVersion as a number."""
    return number(obj["metadata"].get("resourceVersion"))


class Cache:
    """Objects by kind and name, as new as the newest watch event, list or own write. Callers must not change what they get.

    Watch events, lists and answers to own writes reach it in any order: the newer resourceVersion wins; where versions are no
    numbers, what comes last. An object that was deleted (its UID) never comes back. One that only went out of sight, for its label was taken
    off, comes back with a newer version: a watch tells the two alike.
    """

    def __init__(self, kinds: Iterable[ResourceKind] = WATCHED) -> None:
        self._objects: dict[ResourceKind, dict[ObjectName, Object]] = {kind: {} for kind in kinds}
        self._owned: dict[ResourceKind, defaultdict[str, set[ObjectName]]] = {
            kind: defaultdict(set) for kind in self._objects
        }
        self._gone: dict[str, int | None] = {}  # UIDs, oldest first, and the version as of which; None: for good
        self._listed: set[ResourceKind] = set()

    @property
    def synced(self) -> bool:
        """Whether every kind was listed once: before that no decision is made."""
        return self._listed.issuperset(self._objects)

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
        if kind not in self._objects or self._buried(obj):
            return False
        name = (metadata["namespace"], metadata["name"])
        held = self._objects[kind].get(name)
        if held is not None:
            same = held["metadata"]["uid"] == metadata["uid"]
            if not _newer(obj, held):
                return False
            if not same:
                self._remember_gone(held["metadata"]["uid"], None)
            self._unlink(kind, name, held)
        metadata.pop("managedFields", None)
        self._objects[kind][name] = obj
        owner = controller_of(obj)
        if owner is not None:
            self._owned[kind][owner["uid"]].add(name)
        return True

    def drop(
        self, kind: ResourceKind, namespace: str, name: str, uid: str | None = None, version: int | None = None
    ) -> bool:
        """Forget an object that was deleted; with `uid` only that one. True when it was known.

        With `version` it may only have gone out of sight then: what is newer is taken in again. A copy that is newer stays.
        """
        held = self._objects.get(kind, {}).get((namespace, name))
        if held is not None and uid == held["metadata"]["uid"] and version is not None:
            known = version_of(held)
            if known is not None and known > version:
                return False
        if uid is not None:
            self._remember_gone(uid, version)
        if held is None or (uid is not None and held["metadata"]["uid"] != uid):
            return False
        self._remember_gone(held["metadata"]["uid"], version)
        self._unlink(kind, (namespace, name), held)
        del self._objects[kind][namespace, name]
        return True

    def replace(
        self, kind: ResourceKind, items: Iterable[Object], resource_version: str, namespace: str | None = None
    ) -> None:
        """Take in a whole list (of one namespace, or of all), and forget what is not in it."""
        listed = list(items)
        for obj in listed:
            self.put(kind, obj)
        present = {(obj["metadata"]["namespace"], obj["metadata"]["name"]) for obj in listed}
        newest = number(resource_version) or 0
        for obj in self.all(kind, namespace):
            metadata = obj["metadata"]
            # What is newer than the list was created after it was taken.
            if (metadata["namespace"], metadata["name"]) not in present:
                self.drop(kind, metadata["namespace"], metadata["name"], metadata["uid"], newest)

    def mark_listed(self, kind: ResourceKind) -> None:
        """Say that `kind` was listed in every namespace that is served."""
        self._listed.add(kind)

    def _unlink(self, kind: ResourceKind, name: ObjectName, obj: Object) -> None:
        owner = controller_of(obj)
        if owner is None:
            return
        names = self._owned[kind][owner["uid"]]
        names.discard(name)
        if not names:
            del self._owned[kind][owner["uid"]]

    def _buried(self, obj: Object) -> bool:
        """Whether it is known to be gone, and this copy not newer than that."""
        uid = obj["metadata"]["uid"]
        if uid not in self._gone:
            return False
        since, version = self._gone[uid], version_of(obj)
        if since is None or version is None or version <= since:
            return True
        del self._gone[uid]
        return False

    def _remember_gone(self, uid: str, version: int | None) -> None:
        if uid in self._gone and self._gone[uid] is None:
            return  # who is dead does not come back by a later word
        self._gone.pop(uid, None)
        self._gone[uid] = version
        while len(self._gone) > GONE_LIMIT:
            del self._gone[next(iter(self._gone))]


def _newer(obj: Object, held: Object) -> bool:
    """Whether `obj` is to take the place of `held`. What cannot be compared is taken as it comes, its own echo excepted."""
    new, old = version_of(obj), version_of(held)
    if new is not None and old is not None:
        return new > old
    return bool(obj["metadata"].get("resourceVersion") != held["metadata"].get("resourceVersion"))
