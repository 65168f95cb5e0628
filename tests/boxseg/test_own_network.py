"""A third network in one class: all that teacher, QAM, copy-paste, losses and evaluation need from it."""

import torch
import torch.nn.functional as F
from torch import nn

from boxseg import build
from boxseg.config.method import BoxSegConfig
from boxseg.engine.train import optimise
from boxseg.evaluation.validate import validate
from boxseg.model.fcos import grid_locations
from boxseg.model.targets import assign_batch, choose_proposals
from boxseg.ops.boxes import decode_boxes
from boxseg.structures import MaskNetwork, RawDetections


class GridNetwork(MaskNetwork):
    """Each cell of 16 px may hold one object: class logits, a box, and a vector that reads its mask from features."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.fine = nn.Sequential(
            nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)
        )
        self.coarse = nn.Conv2d(8, num_classes + 4 + 8, 4, 4)

    def forward(self, images, valid):
        features = self.fine(images * valid[:, None] / 255)  # (B, 8, H/4, W/4)
        cells = self.coarse(features)
        points = grid_locations(*cells.shape[-2:], 16, device=cells.device)  # (L, 2)
        logits, sides, vectors = (
            cells.flatten(2).transpose(1, 2).split([self.num_classes, 4, 8], dim=2)
        )
        return features, points, logits, sides, vectors

    def detect(self, predictions, *, score_thr, pre_topk):
        _, points, logits, sides, _ = predictions
        found = []
        for probs, boxes in zip(
            logits.sigmoid(), decode_boxes(points, sides.exp(), points[:, 0] * 0 + 16), strict=True
        ):
            confidence, place = probs.flatten().topk(min(pre_topk, probs.numel()))
            place = place[confidence > score_thr]
            cell = place // self.num_classes  # the handle
            scores = confidence[: len(place)].sqrt()
            found.append(RawDetections(boxes[cell], place % self.num_classes, scores, cell))
        return found

    def mask_logits(self, predictions, image_index, handle):
        features, *_, vectors = predictions
        return torch.einsum("nchw,nc->nhw", features[image_index], vectors[image_index, handle])

    def detection_losses(self, predictions, boxes, labels, *, mean_over_ranks):
        _, points, logits, sides, _ = predictions
        level = torch.zeros(len(points), dtype=torch.int64)
        targets = assign_batch(
            points, level + 16.0, level, boxes, labels, radius=1.5, sizes=(torch.inf,)
        )
        positive = targets.box_index >= 0
        wanted = F.one_hot(targets.labels + 1, self.num_classes + 1)[..., 1:].float()
        error = (sides - targets.distances.clamp(min=0.1).log()).abs().mean(dim=-1)
        terms = {
            "cls": F.binary_cross_entropy_with_logits(logits, wanted),
            "loc": (error * positive).mean(),
        }
        return terms, choose_proposals(
            targets.box_index, logits.detach().amax(dim=-1), max_per_image=16
        )


def test_a_third_network_trains_with_qam_and_copy_paste(tmp_path, monkeypatch):
    monkeypatch.setattr(
        build, "build_condinst", lambda config, backbone, num_classes: GridNetwork(num_classes)
    )
    config = {
        "data": {"toy": {"train_images": 8, "val_images": 2, "size": 64}},
        "model": {"backbone": "resnet18", "weights": "none"},
        "train": {"steps": 100, "batch_size": 4, "image_size": 64, "panels": 0},
        "solver": {"optimizer": "adamw", "warmup": 0},
        "teacher": {"cand_score_thr": 0.01},
        "qam": {"iou_thr": 0.05, "score_thr": 0.0},
        "pc": {"p_start": 1.0, "bank_q_thr": 0.0, "bank_s_thr": 0.0, "min_area": 0},
        "loss": {"warmup": 0},
    }
    trainer = build.build_trainer(BoxSegConfig.model_validate(config), data_root=tmp_path)
    seen = [
        optimise(trainer, batch, step) for step, batch in enumerate(trainer.loader.batches(0, 12))
    ]
    assert float(seen[-1]["train/loss_cls"]) < float(seen[0]["train/loss_cls"]) / 2
    # QAM gave it pseudo masks
    assert sum(float(metrics["train/loss_mask"]) for metrics in seen) > 0
    assert sum(float(metrics["pc/paste_rate"]) for metrics in seen) > 0
    assert all(parameter.grad is not None for parameter in trainer.student.parameters())
    assert 0 <= validate(trainer, folder=tmp_path, step=12)[1]["val/mask_ap"] <= 1
