"""The command line: it parses, builds, calls, prints and exits."""
