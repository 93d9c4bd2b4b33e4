"""A course on transfer learning that is also a library.

Names load when they are first used.
"""

import os
import sys

import lazy_loader

__version__ = "0.1.0"


# OpenMP's threads spin for milliseconds while they wait for one that has lost its core
# to another program: measured on two cores, a network then runs six times slower. A
# short spin keeps the speed of a quiet machine. It is read when torch or scikit-learn
# is loaded, so it stands here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Large pictures in Pillow's usual blocks of 16 MB stay with a thread's allocator when
# they are freed; larger blocks go back to the system.
os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")


def _give_home() -> None:
    """Name a user and a home folder where the system knows none, as in a container
    that runs under a foreign number: torch, Keras and matplotlib ask for both."""
    import pwd

    name = f"user-{os.getuid()}"
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", name)
    if os.path.expanduser("~") == "~":
        import tempfile

        home = os.path.join(tempfile.gettempdir(), f"transfer_course-{name}")
        try:
            os.makedirs(home, 0o700, exist_ok=True)
            private = os.stat(home).st_uid == os.getuid()
        except OSError:
            private = False
        os.environ["HOME"] = home if private else tempfile.mkdtemp()


if os.name == "posix":
    _give_home()


class _TritonFirst:
    """Import hook that lets an `import tensorflow` that comes later load triton first.

    Loaded after TensorFlow, triton kills the process.
    """

    def find_spec(self, name, path=None, target=None):
        """Python asks for every module not loaded yet; only tensorflow matters here."""
        if name == "tensorflow":
            sys.meta_path.remove(self)
            from transfer_course.engine.frameworks import _triton_first

            _triton_first()
        return None


sys.meta_path.insert(0, _TritonFirst())

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "classroom",
        "theory",
        "engine",
        "vision",
        "trainer",
        "insight",
        "practice",
    ],
    submod_attrs={
        "classroom.pictures": ["show"],
        "engine.frameworks": ["load_keras", "load_torch"],
        "vision.data": ["ImageDataset", "image_folder", "named_dataset", "styles"],
        "vision.photos": ["photos"],
        "vision.target_tables": ["target_table"],
        "vision.tables": ["image_table"],
        "vision.glyphs": ["glyphs", "handwriting"],
        "vision.evaluate": [
            "by_model",
            "interval",
            "paired_interval",
            "scores",
            "unpaired_interval",
        ],
        "vision.backbones": ["Backbone", "available_backbones", "backbone"],
        "vision.features": ["break_even", "extract", "label_budget", "linear_probe"],
        "vision.freezing": ["assert_frozen", "snapshot"],
        "trainer.recipe": ["Recipe", "register_strategy"],
        "trainer.result": ["Result"],
        "trainer.run": ["fine_tune", "load_result"],
        "practice.export_run": ["export_run"],
        "practice.heat": ["heat_map"],
        "practice.logging_runs": ["CsvLog", "TensorBoardLog"],
        "practice.own_folder": ["tune_folder"],
        "practice.predicting": ["predict_files"],
        "practice.recipes_file": ["from_yaml", "to_yaml"],
    },
)
