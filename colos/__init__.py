"""ColOS: multi-process Python that survives bad machines.

`colos.runtime` runs actors, each an OS process, with Erlang/OTP's semantics.  `colos.chaos` breaks
a throwaway machine under a system and checks what must hold.
"""

__version__ = "0.1.0"
