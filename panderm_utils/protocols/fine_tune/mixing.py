"""The loss of fine-tuning: cross-entropy of mixed images with mixed, smoothed labels."""

import numpy as np
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from panderm_utils.protocols.fine_tune.recipe import FineTuneRecipe
from panderm_utils.protocols.training import MIX, seed_of


class MixedLoss:
    """Computes the mean loss of images [n, 3, 224, 224] with labels [n]; used as `TrainingTask.loss`.

    Image i is mixed with image n-1-i. All micro-batches and processes draw the same weights, from (seed, epoch, step).
    """

    def __init__(self, recipe: FineTuneRecipe, num_classes: int):
        self.recipe, self.num_classes = recipe, num_classes
        self.criterion = SoftTargetCrossEntropy()
        self.mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mix_prob,
            switch_prob=recipe.switch_prob,
            label_smoothing=recipe.smoothing,
            num_classes=num_classes,
        )

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, epoch: int, step: int) -> Tensor:
        images, target = self._mix(images, labels, epoch, step)
        return self.criterion(model(images), target)

    def _mix(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        if not self.recipe.mixes:
            return images, mixup_target(labels, self.num_classes, 1.0, self.recipe.smoothing)
        before = np.random.get_state()  # timm draws from NumPy's global generator
        np.random.seed(seed_of(MIX, self.recipe.seed, epoch, step) % 2**32)
        try:
            return self.mixup(images, labels)
        finally:
            np.random.set_state(before)
