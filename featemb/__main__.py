"""``python -m featemb``: the command line, for launchers such as torchrun."""

from featemb.cli import main

if __name__ == "__main__":
    main()
