"""TinyDB, a popular document store in one JSON file, behind an actor, on a machine whose disk fills up.

Nobody here wrote TinyDB.  With 4.9, an insert that meets a full disk leaves the file cut at a
block's end, and every document that was ever acknowledged is gone: the scenario stands in
``scenarios/`` as a known failure.  The same machine over a storage that writes a temporary file,
syncs and renames, holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from faker import Faker
from hypothesis.stateful import rule
from tinydb import JSONStorage, Storage, TinyDB

from colos.chaos import ActorSystem, ChaosMachine, DiskFull, Kill, always, eventually
from colos.runtime import Actor, ChildSpec, Supervisor

FAKER = Faker()
FILE = "documents.json"


class AtomicStorage(Storage):
    """One JSON file, replaced whole: a reader sees the old documents or the new ones."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def read(self) -> dict[str, dict[str, Any]] | None:
        return json.loads(self._path.read_text()) if self._path.exists() else None

    def write(self, data: dict[str, dict[str, Any]]) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            with open(temporary, "w") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)


class DocumentStore(Actor):
    """Acknowledges an insert when TinyDB has returned."""

    expected = (OSError, ValueError)

    def __init__(self, storage: type[Storage]) -> None:
        self._db = TinyDB(FILE, storage=storage)

    async def insert(self, document: dict[str, Any]) -> int:
        return self._db.insert(document)

    async def emails(self) -> list[str]:
        return [document["email"] for document in self._db.all()]


class TinyDbSupervisor(Supervisor):
    name = "store"
    intensity = 20
    storage: type[Storage] = JSONStorage

    def children(self) -> Sequence[ChildSpec]:
        return [ChildSpec("documents", DocumentStore, (self.storage,), name="documents")]


class AtomicSupervisor(TinyDbSupervisor):
    storage = AtomicStorage


class TestTinyDB(ChaosMachine):
    system = ActorSystem(TinyDbSupervisor)
    faults = (DiskFull(), Kill("store/*"))
    refusals = (OSError,)

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: list[str] = []

    @rule(seed=st.integers(0, 9999))
    async def insert(self, seed: int) -> None:
        document = person(seed)
        store = await self.system.whereis("documents")
        await store.insert(document)
        self.acknowledged.append(document["email"])

    @always
    async def no_acknowledged_document_is_lost(self) -> None:
        store = await self.system.whereis("documents")
        kept = set(await store.emails())
        missing = [email for email in self.acknowledged if email not in kept]
        assert not missing, f"{len(missing)} of {len(self.acknowledged)} acknowledged documents are gone"

    @eventually(within=5.0)
    async def documents_are_accepted_again(self) -> None:
        store = await self.system.whereis("documents")
        await store.insert(person(0))


class TestAtomicTinyDB(TestTinyDB):
    system = ActorSystem(AtomicSupervisor)


def person(seed: int) -> dict[str, Any]:
    """A realistic document, the same for the same seed."""
    FAKER.seed_instance(seed)
    return {
        "name": FAKER.name(),
        "email": f"{seed}-{FAKER.email()}",
        "address": FAKER.address(),
        "about": FAKER.text(max_nb_chars=3000),
        "jobs": [FAKER.job() for _ in range(3)],
        "born": FAKER.date_of_birth().isoformat(),
    }
