"""The OS facilities that make faults real, one file each, every one with a `probe`.

A mechanism knows the kernel's interface and nothing of faults, systems or scenarios.
"""
