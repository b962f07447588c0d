"""What compare finds of examples/hugging_face_model.py, without what differs between machines; then from recordings."""

from pathlib import Path
from tempfile import TemporaryDirectory

from examples.check_your_port import show
from parity.pair.file import compare_file
from parity.record.command import record
from parity.record.compare import compare_folders
from parity.result import Result

PAIR = Path("examples/hugging_face_model.py")


def show_notes(title: str, result: Result) -> None:
    show(title, result)
    for note in result.notes:
        print(f"! {note}")


if __name__ == "__main__":
    show_notes("as it stands", compare_file(PAIR, None))
    with TemporaryDirectory() as place:
        torch, jax = Path(place, "torch"), Path(place, "jax")
        record(PAIR, "torch", None, torch, "float64", "cpu")
        record(PAIR, "jax", torch, jax, "float64", "cpu")
        show_notes("from two recordings", compare_folders(torch, jax))
