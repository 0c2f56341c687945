"""What is wrong with a server, from evidence."""
