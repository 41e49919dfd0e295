"""Data preparation: from images or an archive to a prepared set, one folder with a manifest. Imports no torch."""
