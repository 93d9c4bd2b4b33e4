"""The peers, each as its own documentation has it.

The backbone, its weights and preprocessing, the pictures and the threads are ours.

PyTorch: "Transfer Learning for Computer Vision Tutorial". Keras: the guide "Transfer
learning & fine-tuning". fastai: quick start and vision tutorial. timm: `validate.py`
and `train.py`. What had to be exchanged is said at each.
"""

from __future__ import annotations

import copy

from common import LITE0, Curve, cores

WORKERS = min(4, cores())  # the tutorial says 4; more workers than cores slow it down


def lite0(framework: str = "torch"):
    """The bundled backbone, fresh."""
    from transfer_course import backbone

    return backbone("efficientnet_lite0", framework)


def torch_eager(net, images, batch: int = 32):
    """Features as tutorials take them.

    Default memory layout, `no_grad`, batch by batch.
    """
    import torch

    model = net.model.to(memory_format=torch.contiguous_format).eval()
    x = torch.from_numpy(net.preprocess(images).copy(order="C"))

    def run():
        with torch.no_grad():
            return torch.cat([model(part) for part in x.split(batch)]).numpy()

    return run


def torch_dataloader(net, folder, size: int, batch: int = 32):
    """From files to features with torchvision's ImageFolder and a DataLoader."""
    import torch
    from torchvision import datasets, transforms

    steps = [
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
    ]
    data = datasets.ImageFolder(
        folder,
        transforms.Compose(
            [*steps, transforms.ToTensor(), transforms.Normalize(**LITE0)]
        ),
    )
    model = net.model.to(memory_format=torch.contiguous_format).eval()

    def run():
        loader = torch.utils.data.DataLoader(
            data, batch_size=batch, num_workers=WORKERS
        )
        with torch.no_grad():
            return torch.cat([model(inputs) for inputs, _ in loader]).numpy()

    return run


def timm_eval(net, folder, size: int, batch: int = 32):
    """timm's evaluation loop (`validate.py`).

    create_dataset, create_loader with its prefetcher, inference_mode.
    """
    import torch
    from timm.data import create_dataset, create_loader

    model = net.model.to(memory_format=torch.contiguous_format).eval()
    device = torch.device("cpu")
    data = create_dataset("", root=str(folder), split="validation")
    how = dict(
        interpolation="bicubic",
        crop_pct=1.0,
        num_workers=WORKERS,
        device=device,
        use_prefetcher=True,
        **LITE0,
    )

    def run():
        loader, out = create_loader(data, (3, size, size), batch, **how), []
        with torch.inference_mode():
            for inputs, _ in loader:
                out.append(model(inputs))
        return torch.cat(out).numpy()

    return run


def tutorial_data(folder, size: int):
    """The tutorial's loaders, with batches of 4.

    RandomResizedCrop and flip for training. The validation pictures have the right size
    already.
    """
    import torch
    from torchvision import datasets, transforms

    last = [transforms.ToTensor(), transforms.Normalize(**LITE0)]
    how = {
        "train": transforms.Compose(
            [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                *last,
            ]
        ),
        "val": transforms.Compose(
            [transforms.Resize(size), transforms.CenterCrop(size), *last]
        ),
    }
    sets = {part: datasets.ImageFolder(str(folder / part), how[part]) for part in how}
    return {
        part: torch.utils.data.DataLoader(
            s, batch_size=4, shuffle=True, num_workers=WORKERS
        )
        for part, s in sets.items()
    }


def tutorial_model(classes: int, frozen: bool = False):
    """The backbone with a new last layer, and the optimizer (SGD .001, momentum .9).

    `frozen`: the optimizer has the last layer only.
    """
    import torch
    from torch import nn

    body = lite0().model.to(memory_format=torch.contiguous_format)
    for p in body.parameters() if frozen else ():
        p.requires_grad = False
    model = nn.Sequential(body, nn.Linear(1280, classes))
    return model, torch.optim.SGD(
        (model[1] if frozen else model).parameters(), lr=0.001, momentum=0.9
    )


def tutorial(
    folder, seed: int, size: int = 96, epochs: int = 25, frozen: bool = False
) -> list:
    """`train_model` of the tutorial.

    25 epochs, a tenth of the rate every 7; the best validation weights are kept.
    """
    import torch

    torch.manual_seed(seed)
    curve, loaders = Curve(), tutorial_data(folder, size)
    model, optimizer = tutorial_model(len(loaders["train"].dataset.classes), frozen)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    criterion = torch.nn.CrossEntropyLoss()
    best, best_weights = 0.0, copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        for part, loader in loaders.items():
            learns, loss_sum, right = part == "train", 0.0, 0
            model.train(learns)
            for inputs, labels in loader:
                optimizer.zero_grad()
                with torch.set_grad_enabled(learns):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if learns:
                        loss.backward()
                        optimizer.step()
                loss_sum += loss.item() * len(inputs)
                right += torch.sum(outputs.argmax(1) == labels).item()
            if learns:
                scheduler.step()
        accuracy = right / len(loaders["val"].dataset)
        if accuracy > best:
            best, best_weights = accuracy, copy.deepcopy(model.state_dict())
        curve.note(accuracy)
    model.load_state_dict(best_weights)
    return curve.points


def keras_data(folder, size: int, seed: int):
    """Cached, batched by 32, prefetched, as the guide has it.

    The guide reads shuffled records from TFDS. Files in class folders are shuffled
    here.
    """
    from transfer_course.engine.frameworks import load_keras

    keras = load_keras()
    from_folder = keras.utils.image_dataset_from_directory
    train, valid = (
        from_folder(
            str(folder / p),
            image_size=(size, size),
            batch_size=None,
            shuffle=False,
            verbose=False,
        )
        for p in ("train", "val")
    )
    classes, n = train.class_names, int(train.cardinality())
    train, valid = train.cache().shuffle(n, seed=seed), valid.cache()
    return train.batch(32).prefetch(10), valid.batch(32).prefetch(10), classes


def keras_guide(
    folder, seed: int, size: int = 96, epochs: int = 20, fine: int = 10
) -> list:
    """The Keras guide: 20 epochs of the top with Adam, then 10 of everything at 1e-5.

    Flip, rotation and dropout are in the model. The guide keeps BatchNorm in inference
    mode by `training=False`, which `fit` overrides in Keras 3 (keras-team/keras#20285:
    its statistics move, and the accuracy fell from 0.58 to 0.2 here). So that the peer
    does what its guide says, those layers stay frozen.
    """
    from transfer_course.engine.frameworks import load_keras

    keras = load_keras()
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    curve = Curve()
    train, valid, classes = keras_data(folder, size, seed)
    body = lite0("keras").model
    body.trainable = False
    x = inputs = keras.Input((size, size, 3))
    for layer in (
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1),
        layers.Rescaling(1 / 128, offset=-127 / 128),
    ):
        x = layer(x)
    x = layers.Dropout(0.2)(body(x, training=False))
    model = keras.Model(inputs, layers.Dense(len(classes))(x))
    noting = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: curve.note(logs["val_accuracy"])
    )
    for rate, n in ((1e-3, epochs), (1e-5, fine)):
        body.trainable = rate == 1e-5
        for layer in body.layers if body.trainable else ():
            layer.trainable = not isinstance(layer, layers.BatchNormalization)
        model.compile(
            keras.optimizers.Adam(rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(train, epochs=n, validation_data=valid, verbose=0, callbacks=[noting])
    return curve.points


def fastai(
    folder, seed: int, size: int = 96, epochs: int = 4, most: int | None = None
) -> list:
    """fastai: from_folder, Resize, aug_transforms, vision_learner, `fine_tune(epochs)`.

    One frozen epoch and then these.
    """
    from transfer_course.engine.files import asset
    from transfer_course.engine.frameworks import load_torch

    load_torch()
    from fastai.callback.core import Callback
    from fastai.torch_core import set_seed
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        vision_learner,
    )

    set_seed(seed)
    curve = Curve()

    class Note(Callback):
        order = 60  # after the Recorder

        def after_epoch(self):
            curve.note(self.recorder.values[-1][-1])

    tfms = [*aug_transforms(size=size), Normalize.from_stats(*LITE0.values())]
    dls = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="val",
        item_tfms=Resize(size),
        batch_tfms=tfms,
        bs=most or 64,
        device="cpu",
    )
    weights = {"file": str(asset("efficientnet_lite0.safetensors"))}
    learn = vision_learner(
        dls,
        "tf_efficientnet_lite0",
        normalize=False,
        metrics=accuracy,
        cbs=Note(),
        pretrained_cfg_overlay=weights,
    )
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(epochs)
    return curve.points


def plain_loop(folder, size: int) -> int:
    """Features of a folder as a short script takes them.

    Every picture, its tensor and its features are kept in memory.
    """
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

    net = lite0()
    pictures = [
        np.asarray(Image.open(f).convert("RGB").resize((size, size), Image.BICUBIC))
        for f in sorted(Path(folder).rglob("*.jpg"))
    ]
    x = torch.from_numpy(np.ascontiguousarray(net.preprocess(np.stack(pictures))))
    with torch.no_grad():
        return len(torch.cat([net.model(part) for part in x.split(32)]))
