"""A minimal actor runtime with Erlang/OTP's semantics, in which every actor is an OS process."""

from __future__ import annotations

from colos.runtime.actor import Actor
from colos.runtime.client import NodeClient, connect
from colos.runtime.clock import wall_time
from colos.runtime.here import Down, ExitSignal, Monitor
from colos.runtime.incarnation import ProcessInfo
from colos.runtime.management import delete_child, restart_child, start_child, terminate_child, which_children
from colos.runtime.node import Node, serve
from colos.runtime.primitives import (
    Task,
    Timer,
    ancestors,
    demonitor,
    exit_signal,
    join,
    leave,
    link,
    me,
    members,
    monitor,
    parent,
    publish,
    receive,
    register,
    send,
    send_after,
    send_nowait,
    spawn,
    start_task,
    trap_exit,
    unlink,
    unregister,
    whereis,
)
from colos.runtime.reasons import Exit
from colos.runtime.refs import ActorRef
from colos.runtime.rundir import ActorEntry, ExitRecord, read_actors
from colos.runtime.statemachine import StateMachine, WrongState
from colos.runtime.supervisor import ChildSpec, Supervisor, topology
from colos.runtime.trace import TraceEvent

__all__ = [
    "Actor",
    "ActorEntry",
    "ActorRef",
    "ChildSpec",
    "Down",
    "Exit",
    "ExitRecord",
    "ExitSignal",
    "Monitor",
    "Node",
    "NodeClient",
    "ProcessInfo",
    "StateMachine",
    "Supervisor",
    "Task",
    "Timer",
    "TraceEvent",
    "WrongState",
    "ancestors",
    "connect",
    "delete_child",
    "demonitor",
    "exit_signal",
    "join",
    "leave",
    "link",
    "me",
    "members",
    "monitor",
    "parent",
    "publish",
    "read_actors",
    "receive",
    "register",
    "restart_child",
    "send",
    "send_after",
    "send_nowait",
    "serve",
    "spawn",
    "start_child",
    "start_task",
    "terminate_child",
    "topology",
    "trap_exit",
    "unlink",
    "unregister",
    "wall_time",
    "whereis",
    "which_children",
]
