"""`python -m landform` is the command `landform`; so is `torchrun ... -m landform`."""

from landform.cli import main

if __name__ == "__main__":
    main()
