"""What every command shares: text, files, the console, signals, how a command ends."""
