"""The work of the commands, as functions: data in, data out; nothing is printed here."""
