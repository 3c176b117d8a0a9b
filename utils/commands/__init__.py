"""The command line: every option of the shell commands, parsed and described once. Standard library only."""
