"""How the ready types of artifacts are written and read; numpy, torch and the like come when needed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlxjobs.errors import InvalidArtifactError

_PNG = b"\x89PNG\r\n\x1a\n"


def save_pickle(obj: Any, path: str) -> None:
    """Pickle an object; cloudpickle takes what pickle cannot."""
    from mlxjobs.logger.pickling import dump

    with open(path, "wb") as file:
        dump(obj, file)


def load_pickle(path: str) -> Any:
    """Read a pickle, which runs what it says."""
    import pickle

    with open(path, "rb") as file:
        return pickle.load(file)  # noqa: S301 - the user asked for a pickle


def save_numpy(obj: Any, path: str) -> None:
    """Write an array, or a mapping of names to arrays."""
    import numpy as np

    with open(path, "wb") as file:  # a file, for numpy adds to a name
        try:
            if isinstance(obj, Mapping):
                np.savez(file, **obj)
            else:
                np.save(file, obj)
        except (TypeError, ValueError) as error:
            raise InvalidArtifactError(
                f"it cannot be written by numpy: {error}. It takes an array, or a dictionary of arrays whose "
                "names are strings, and not 'file'"
            ) from error


def load_numpy(path: str) -> Any:
    """Read an array, or a dictionary of arrays; arrays of objects are refused."""
    import numpy as np

    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return dict(content)
    except ValueError as error:
        raise InvalidArtifactError(
            f"{path} cannot be read: {error}. Arrays of objects are pickles: if you trust the file, "
            "use numpy.load(path, allow_pickle=True)"
        ) from error


def save_image(obj: Any, path: str) -> None:
    """Draw a figure of matplotlib or an image of PIL; PNG unless the name ends in another format."""
    kind = Path(path).suffix.lower()  # of `lr_0.01` it is none
    if hasattr(obj, "savefig"):
        from matplotlib.backend_bases import FigureCanvasBase

        known = kind[1:] in FigureCanvasBase.get_supported_filetypes()
        obj.savefig(path, format=kind[1:] if known else "png", bbox_inches="tight")
    elif hasattr(obj, "save") and hasattr(obj, "getbands"):
        from PIL import Image

        obj.save(path, format=Image.registered_extensions().get(kind, "PNG"))
    else:
        raise InvalidArtifactError(
            f"{type(obj).__name__} is not an image: give a figure of matplotlib or PIL's image"
        )


def load_image(path: str) -> Any:
    """Read a picture as an array, [height, width, channels]."""
    from matplotlib import image

    with open(path, "rb") as file:
        kind = "png" if file.read(len(_PNG)) == _PNG else "of PIL"
    return image.imread(path, format=kind)


def save_torch(obj: Any, path: str) -> None:
    """Write a tensor, a module or its state."""
    import torch

    torch.save(obj, path)


def load_torch(path: str) -> Any:
    """Read what torch wrote, as weights only if that is enough; else this runs what the file says."""
    import pickle

    import torch

    with suppress(pickle.UnpicklingError):
        return torch.load(path, weights_only=True)
    return torch.load(path, weights_only=False)


def save_text(obj: Any, path: str) -> None:
    """Write a string in UTF-8."""
    if not isinstance(obj, str):
        raise InvalidArtifactError(f"{type(obj).__name__} is not a string")
    Path(path).write_text(obj, encoding="utf-8", newline="")


def load_text(path: str) -> str:
    """Read a string in UTF-8."""
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def save_json(obj: Any, path: str) -> None:
    """Write numbers, strings, lists and dictionaries as JSON."""
    import json

    try:
        text = json.dumps(obj, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArtifactError(f"it cannot be written as JSON: {error}") from error
    Path(path).write_text(text + "\n", encoding="utf-8")


def load_json(path: str) -> Any:
    """Read JSON."""
    import json

    return json.loads(Path(path).read_bytes())
