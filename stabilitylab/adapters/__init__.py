"""Recording inside other libraries' loops, one library a file; nothing here is imported until it is asked for."""
