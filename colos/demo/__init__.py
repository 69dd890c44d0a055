"""A small system to break: a ledger of jobs, once with an honest bug and once repaired."""
