"""The `kos` command. Its argparse tree is the one grammar of KOS; the `%kos` magics parse with it too."""
