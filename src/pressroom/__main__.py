"""`python -m pressroom` is `press`."""

from pressroom.cli import main

if __name__ == "__main__":
    main()
