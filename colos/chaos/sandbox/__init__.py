"""The throwaway machine: tiers, the template that forks them, and the handle a test holds."""
