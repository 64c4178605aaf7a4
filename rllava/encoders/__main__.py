"""Prints the registered encoders, and whether their weights are on this machine: ``python -m rllava.encoders``."""

from rllava.encoders import encoder_names, encoder_spec
from rllava.weights import weights_folder, weights_of, weights_path


def main() -> None:
    """Prints a line per encoder."""
    print(f"{'name':20s} {'pixels':>6s} {'tokens':>6s} {'width':>6s} {'params':>8s}  weights")
    for name in encoder_names():
        spec = encoder_spec(name)
        size = "" if spec.parameters is None else f"{spec.parameters:.1f}M"
        path = weights_of(spec)
        here = path is None or weights_path(path).exists()
        source = "here" if here else f"{path}, from {spec.origin}"
        print(f"{name:20s} {spec.image_size:6d} {spec.tokens:6d} {spec.width:6d} {size:>8s}  {source}")
    print(f"weights folder: {weights_folder()} ($RLLAVA_WEIGHTS); files of the hub may also be in its own cache")


if __name__ == "__main__":
    main()
