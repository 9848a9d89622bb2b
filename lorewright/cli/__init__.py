"""The command `lore`: arguments in, text or JSON out, exit codes."""
