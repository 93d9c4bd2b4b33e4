"""What tests of training share: images of three colours, and a small network."""

import numpy as np

from transfer_course.vision.data import ImageDataset

CLASSES = ["red", "green", "blue"]
# Constant rates and no momentum, so that an update depends on its batch alone.
PLAIN = dict(optimizer="sgd", momentum=0.0, schedule="constant", warmup=0.0)


def colours(labels, noise=96, brighter=128, seed=0):
    """Images of noise, in each the channel of its label brighter (N, 32, 32, 3)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, noise, (len(labels), 32, 32, 3), dtype=np.uint8)
    images[np.arange(len(labels)), :, :, labels] += brighter
    return ImageDataset(images=images, labels=labels, classes=CLASSES)


def keras_backbone():
    """Two convolutions with a BatchNorm between them."""
    from transfer_course.engine.frameworks import load_keras
    from transfer_course.vision.backbones import KerasBackbone

    keras = load_keras()
    keras.utils.set_random_seed(0)
    layers, images = keras.layers, keras.Input((None, None, 3))
    x = layers.Conv2D(8, 5, strides=3, name="early_conv")(images)
    x = layers.ReLU()(layers.BatchNormalization(name="early_bn")(x))
    x = layers.ReLU()(layers.Conv2D(16, 3, name="late_conv")(x))
    features = layers.GlobalAveragePooling2D()(x)
    return KerasBackbone(
        name="tiny",
        framework="keras",
        params=0,
        feature_dim=16,
        stages={s: (s + "_",) for s in ("early", "late")},
        model=keras.Model(images, features),
    )
