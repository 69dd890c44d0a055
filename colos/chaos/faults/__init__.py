"""The fault kinds, one file each or one for a close family.  Nothing here imports another of them."""
