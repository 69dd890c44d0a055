"""What the command does with saved scenarios, without pytest: replay them, list them, shorten one again."""
