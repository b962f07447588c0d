"""What `python -m parity compare examples/hugging_face_model.py` finds, without what differs between machines."""

from pathlib import Path

from examples.check_your_port import show
from parity.pair.file import compare_file

if __name__ == "__main__":
    result = compare_file(Path("examples/hugging_face_model.py"), None)
    show("as it stands", result)
    for note in result.notes:
        print(f"! {note}")
