"""Where the program begins: signals are noted before anything is imported that takes time."""

from prunecli.cli import signals


def main() -> None:
    """Run the command line."""
    signals.listen()
    from prunecli.cli import app

    app.main()


if __name__ == "__main__":
    main()
