"""A minimal actor runtime with Erlang/OTP's semantics, in which every actor is an OS process."""

from __future__ import annotations

from colos.runtime.actor import Actor, ActorRef
from colos.runtime.node import Node, NodeClient, connect, serve
from colos.runtime.root import ProcessInfo
from colos.runtime.rundir import ActorEntry, ExitRecord, read_actors
from colos.runtime.supervisor import ChildSpec, Supervisor, topology

__all__ = [
    "Actor",
    "ActorEntry",
    "ActorRef",
    "ChildSpec",
    "ExitRecord",
    "Node",
    "NodeClient",
    "ProcessInfo",
    "Supervisor",
    "connect",
    "read_actors",
    "serve",
    "topology",
]
