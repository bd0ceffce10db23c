"""Find files of pretrained weights; imports no torch."""

from pathlib import Path

from fractatlas.errors import InputError
from fractatlas.evaluation.run_folder import best_checkpoint


def find_weights(variant: str, weights: str | None, weights_dir: str) -> Path | None:
    """Return the file of weights that a model configuration names.

    Args:
        variant: torchvision's name of the network.
        weights: ``imagenet``: the file in ``weights_dir`` whose name starts with the variant's; or a file; or a run
            folder, which stands for its best checkpoint.
        weights_dir: the folder of ImageNet weights.

    Returns:
        The file; ``None`` if there are no weights, or if torchvision's file must be downloaded first.

    Raises:
        InputError: the file does not exist, or the folder contains several files for the variant.
    """
    if weights is None:
        return None
    if weights != "imagenet":
        file = best_checkpoint(Path(weights))
        if not file.is_file():
            raise InputError(f"model.weights={weights}: no such file; correct the path, or use imagenet or null")
        return file
    files = sorted(Path(weights_dir).glob(f"{variant}[-_.]*pth"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(
            f"{weights_dir} contains several files for {variant} ({names}); choose one: model.weights=FILE"
        )
    return files[0] if files else None
