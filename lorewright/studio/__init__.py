"""Pages on a memory folder in a browser of this machine: look, write, verify, ask, diagnose."""
