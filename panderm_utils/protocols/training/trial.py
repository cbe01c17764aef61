"""A training step on random images, in parts that a calibration times."""

from collections.abc import Callable
from pathlib import Path

import torch

from panderm_utils.encoders import arbitrary_weights
from panderm_utils.protocols.training.gradients import BatchGradients, make_optimizer
from panderm_utils.protocols.training.inference import forward
from panderm_utils.protocols.training.processes import Computing, make_accelerator
from panderm_utils.protocols.training.task import TrainingTask

FEW = 2  # images of a batch on a CPU, which takes as long for each of many


class TrialStep:
    """A step of a training whose weights are arbitrary: on them its time does not depend.

    Attributes:
        count: Images of the batch.
    """

    def __init__(self, make_task: Callable[[int], tuple[TrainingTask, torch.Tensor]], batch: int, computing: Computing):
        """Makes the step.

        Args:
            make_task: Takes the images of a batch; returns a task with a model on the device "meta", and targets.
            batch: The images of the recipe's batch.
        """
        self.computing, self.device = computing.settle()
        self.count = min(FEW, batch) if self.device.type == "cpu" else batch
        task, self.targets = make_task(self.count)
        accelerator = make_accelerator(self.device, self.computing.precision, (), Path())
        self.plain = arbitrary_weights(task.model, self.device)
        groups = task.parameter_groups(self.plain)
        model, self.optimizer = accelerator.prepare(self.plain, make_optimizer(groups, task.recipe))
        self.batch_gradients = BatchGradients(accelerator, model, task.loss, 0, self.count, "auto")
        self.images = torch.randn(self.count, 3, 224, 224)

    def gradients(self) -> None:
        self.plain.train()
        self.batch_gradients(self.images, self.targets, 0, 0)

    def optimize(self) -> None:
        self.optimizer.step()

    @torch.no_grad()
    def predict(self) -> None:
        self.plain.eval()
        forward(self.plain, self.images, self.device, self.computing.precision, self.count)
