"""Typed settings of the method, as they are used; presets are in presets.py. Importable without torch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

from boxseg.config.backbones import check_backbone_name
from boxseg.config.presets import Method, Profile, apply_presets
from boxseg.errors import ConfigError

Shape = Literal[
    "disc", "square", "star", "ring", "corner", "crescent", "ellipse", "quad", "triangle"
]
MAX_ENLARGEMENT = 6.0
"""Windows enlarge an image by this factor at most: more adds pixels, and no detail to see in them."""
Warmup = Annotated[float, Field(ge=0)]
"""Below 1: a share of `train.steps`. From 1 on: a number of steps. 0: no warm-up."""


class Config(BaseModel):
    """Base of every settings group: immutable, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # the docstring of a field is its description in the JSON schema
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # Pydantic takes true for 1, so `steps: true` would train for one step.
        if isinstance(value, bool) and info.field_name is not None:
            annotation = cls.model_fields[info.field_name].annotation
            for number in (int, float):
                if number in (annotation, *get_args(annotation)):
                    raise PydanticKnownError("int_type" if number is int else "float_type")
        return value


class CocoSource(Config):
    """A folder of images and the COCO file that describes them."""

    images: Path
    """Folder that the file names of the COCO file are relative to."""
    annotations: Path
    """COCO instance JSON."""


class ToyConfig(Config):
    """The generated data set of shapes."""

    train_images: int = Field(320, ge=1)
    """Training images to draw."""
    val_images: int = Field(80, ge=1)
    """Validation images to draw."""
    size: int = Field(128, ge=64, le=1024)
    """Side of the square images [px]."""
    seed: int = Field(0, ge=0)
    """Seed of the drawing; the same seed gives the same files."""
    shapes: tuple[Shape, ...] = Field(
        ("disc", "square", "star", "ring", "corner", "crescent"), min_length=1
    )
    """Classes, in the order of their labels."""
    max_turn: float = Field(360.0, ge=0, le=360)
    """Each shape is turned by an angle between 0 and this [degrees]; upright shapes are easier to tell apart."""
    class_colors: bool = False
    """Each class has a hue of its own, with some variation; otherwise colours say nothing about the class."""
    clutter: int = Field(0, ge=0, le=20)
    """Most shapes of an image that belong to no class and lie behind its objects."""

    @model_validator(mode="after")
    def _check_clutter(self) -> ToyConfig:
        if self.clutter and set(self.shapes) == set(get_args(Shape)):
            raise ValueError(
                f"clutter {self.clutter} needs a shape that is no class, but shapes names all of them"
            )
        return self


class DataConfig(Config):
    """Where images and boxes come from."""

    train: Literal["toy"] | CocoSource = "toy"
    """Training images and boxes; masks in the file are used only where use_masks says so."""
    val: Literal["toy"] | CocoSource = "toy"
    """Validation images with drawn masks."""
    toy: ToyConfig = ToyConfig()
    """The generated data set, used where a source says `toy`."""
    loader_workers: int = Field(0, ge=0)
    """Processes that read images, for each training worker; 0 reads in the worker itself."""
    max_val_images: int | None = Field(None, ge=1)
    """Evaluate on this number of validation images, the first ones; all when null."""
    use_masks: Literal["never", "where_present"] = "never"
    """never: drawn masks of the training file are dropped while it is read; where_present: a box that has one learns
    from it, with quality 1, in the place of what the teacher says (mixed supervision)."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    strong: Literal["none", "weak", "strong", "strongv2"] = "weak"
    """Colour changes of the student's view; `strongv2` adds blur."""

    @property
    def files(self) -> dict[str, CocoSource]:
        """The sources that are files, and not drawn here, as `train` and `val`."""
        sources = {"train": self.train, "val": self.val}
        return {name: source for name, source in sources.items() if isinstance(source, CocoSource)}


class ModelConfig(Config):
    """The network."""

    backbone: str = "resnet50"
    """resnet18, resnet34, resnet50, resnet101, resnet18_half, efficientnet_lite0, or timm/NAME for any timm feature
    extractor or plain ViT, as of DINOv2 and DINOv3."""
    weights: str = "auto"
    """auto: ImageNet weights, or what timm has under the name, where they can be had, else random with a warning;
    imagenet: the same but fail without; none: random; anything else: path of a state dict."""
    frozen_stages: int | None = Field(None, ge=0, le=5)
    """Backbone stages that do not learn, the stem is the first, and all of a plain ViT; null: 2 with loaded weights,
    else 0."""
    norm: Literal["auto", "frozen", "batch"] = "auto"
    """Backbone BatchNorm: stored statistics or those of the batch; auto: frozen with ImageNet weights, else batch."""
    channels: int = Field(256, ge=8)
    """Channels of pyramid and detection head; a multiple of 8."""
    tower_convs: int = Field(4, ge=0)
    """3x3 convolutions in each tower of the detection head."""
    norm_groups: int | None = Field(None, ge=1)
    """Groups of the detection head's group norms; null: 32, or fewer so that each has four channels or more."""
    start_from: Path | None = None
    """Start from trained weights: the folder of a run or checkpoint, or a state dict (.safetensors, .pt, .pth); in an
    experiment file also the id of a run or best:SWEEP. What fits in name and shape is taken over."""

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, backbone: str) -> str:
        try:
            check_backbone_name(backbone)
        except ConfigError as error:
            # who reports it names the setting anyway
            raise ValueError(str(error).removeprefix("model.backbone: ")) from error
        return backbone

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, channels: int) -> int:
        if channels % 8:
            raise ValueError(
                f"{channels} is not a multiple of 8, as the group norms of the heads need"
            )
        return channels

    @model_validator(mode="after")
    def _check_groups(self) -> ModelConfig:
        if self.norm_groups is not None and self.channels % self.norm_groups:
            raise ValueError(
                f"channels {self.channels} is not a multiple of norm_groups {self.norm_groups}; change one of them, or "
                "set norm_groups to null, as profile fixed does, for fewer groups where there are few channels"
            )
        return self


class TrainConfig(Config):
    """Length, size and pace of a run."""

    steps: int = Field(90_000, ge=1)
    """Optimizer updates."""
    batch_size: int = Field(16, ge=1)
    """Images per update, over all workers."""
    accumulate: int = Field(1, ge=1)
    """Parts that each worker's images are trained in, one after the other, before an update: less memory. Losses are
    averages over a part's objects, and BatchNorm and bank see the parts one by one."""
    image_size: int | tuple[int, ...] = 800
    """Short side of training images [px]; of several sizes one is drawn for each image."""
    max_size: int = Field(1333, ge=32)
    """Limit of the long side [px]."""
    window: int | None = Field(None, ge=64)
    """Train on square windows of this side around random objects, scaled as `object_size` says [px]; null: on whole
    images of `image_size`."""
    object_size: tuple[float, float] = (48.0, 128.0)
    """What the longer side of the object in the middle of a window becomes, drawn between these two [px]."""
    closer: float = Field(1.0, ge=1, le=4)
    """Towards the end of the run windows and the objects in them are this many times as large: outlines get better,
    and doing so from the beginning would take longer. 1: the same all along."""
    closer_from: float = Field(0.75, ge=0, lt=1)
    """Share of the steps after which windows are larger, see `closer`."""
    eval_size: int | None = Field(None, ge=32)
    """Short side at evaluation [px]; null: the largest training size."""
    eval_tile: int | None = Field(None, ge=64, multiple_of=32)
    """Look at images that are larger in the network in square tiles of this side that overlap by a quarter, at
    evaluation and prediction: memory is bounded then, whatever `eval_size` [px]; null: at whole images."""
    seed: int = Field(0, ge=0)
    """Seed of weights, order and augmentation."""
    eval_every: float = Field(0.25, gt=0)
    """Evaluate after this share of the steps (below 1) or number of steps; the last step is always evaluated."""
    save_every: float | None = Field(None, gt=0)
    """Save a checkpoint after this share of the steps (below 1) or number of steps as well; null: with every
    evaluation only."""
    report_every: int = Field(20, ge=1)
    """Steps between two lines of training metrics (means over the steps between)."""
    clip_norm: float | None = Field(None, gt=0)
    """Limit of the gradient norm; null: no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs that have it, else fp32."""
    channels_last: bool = False
    """Keep feature maps in channels-last order: faster with depthwise convolutions on CPUs and with bf16 on GPUs."""
    evaluate: Literal["teacher", "student", "both"] = "both"
    """Network that is evaluated; with both, `val/` is the better of the two and each is reported as well."""
    collapse_fill: float | None = Field(0.95, gt=0, le=1)
    """Stop when the areas of confident masks and their boxes agree to this share (`health/box_likeness`) at an
    evaluation in the second half of the run: the masks are boxes then. null: never, for objects that are rectangles."""
    panels: int = Field(4, ge=0)
    """Validation images drawn at each evaluation."""

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Short sides of training images [px]."""
        return (self.image_size,) if isinstance(self.image_size, int) else self.image_size

    @property
    def closest(self) -> TrainConfig:
        """The same settings with the largest windows and objects of the run."""
        if self.window is None:
            return self
        smallest, largest = self.object_size
        larger = {
            "window": round(self.window * self.closer),
            "object_size": (smallest * self.closer, largest * self.closer),
        }
        return self.model_copy(update=larger)

    @property
    def eval_short_side(self) -> int:
        """Short side at evaluation [px]."""
        return self.eval_size or max(self.short_sides)

    @model_validator(mode="after")
    def _check_sizes(self) -> TrainConfig:
        sizes = self.short_sides
        if not sizes or min(sizes) < 32:
            raise ValueError(
                f"image_size {self.image_size} is too small; each size needs 32 px or more"
            )
        if max(sizes) > self.max_size:
            raise ValueError(
                f"image_size {max(sizes)} exceeds max_size {self.max_size}; raise max_size with it"
            )
        if self.eval_size is not None and self.eval_size > self.max_size:
            raise ValueError(
                f"eval_size {self.eval_size} exceeds max_size {self.max_size}; raise max_size with it"
            )
        smallest, largest = self.object_size
        if not 8 <= smallest <= largest or (self.window is not None and largest > self.window):
            raise ValueError(
                f"object_size [{smallest:g}, {largest:g}] must be two sizes "
                f"from 8 to window {self.window}, the smaller one first"
            )
        if self.closer > 1 and self.window is None:
            raise ValueError(
                f"closer {self.closer:g} makes windows larger, and window is null; set it, or closer to 1"
            )
        for name, every in (("eval_every", self.eval_every), ("save_every", self.save_every)):
            if every is not None and every >= 1 and every != int(every):
                raise ValueError(
                    f"{name} {every:g} must be a share below 1 or a whole number of steps"
                )
        return self


class SolverConfig(Config):
    """Optimizer and learning-rate schedule."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd with momentum, or AdamW."""
    lr: float = Field(0.01, gt=0)
    """Base learning rate, for the batch size that is set; scale it with the batch."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Share of AdamW's mean of squared gradients that each update keeps: the first ones, which are large, slow it for
    about 1 / (1 - beta2) updates."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay of all trainable parameters."""
    backbone_lr_scale: float = Field(1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    warmup: Warmup = 1 / 90
    """Linear learning-rate warm-up from 0.001 of the base rate."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """How the rate falls after the warm-up."""
    milestones: tuple[float, ...] = (60_000 / 90_000, 80_000 / 90_000)
    """Shares of `train.steps` at which multistep multiplies the rate by 0.1."""

    @field_validator("milestones")
    @classmethod
    def _check_milestones(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        are_shares = all(0 < share < 1 for share in milestones)
        if not are_shares or list(milestones) != sorted(milestones):
            shares = ", ".join(f"{share:g}" for share in milestones)
            raise ValueError(
                f"[{shares}] must be rising shares of train.steps, each above 0 and below 1"
            )
        return milestones


class TeacherConfig(Config):
    """The EMA network that labels the training images."""

    on: bool = True
    """Keep a teacher; without one there are no pseudo masks and no copy-paste."""
    cand_score_thr: float = Field(0.05, gt=0, lt=1)
    """Floor of a candidate's confidence: class probability x centre-ness."""
    pre_topk: int = Field(1000, ge=1)
    """Candidates per pyramid level before ranking."""
    with_nms: bool = False
    """Label as BoxTeacher does, with NMS and one detection per box, instead of QAM."""
    nms_overwrite: bool = False
    """With NMS: a box that the first detection has taken stays free for a worse one, as in the reference."""
    resize_short: int | None = Field(None, ge=32)
    """Short side of the teacher's input [px]; null: the training size."""
    resize_long: int = Field(1333, ge=32)
    """Limit of the long side of the teacher's input [px]."""


class QamConfig(Config):
    """Quality-Aware Module: box-quality ranking, quality-aware mask fusion, mask-quality scoring."""

    k_top: int = Field(20, ge=1)
    """Candidates kept per ground-truth box, best box IoU first."""
    adaptive_k: bool = False
    """Let the number of candidates grow with the box area, from k_min to k_max."""
    k_min: int = Field(5, ge=1)
    """Candidates of boxes up to area_s."""
    k_max: int = Field(20, ge=1)
    """Candidates of boxes from area_l on."""
    area_s: float = Field(32.0**2, gt=0)
    """Area of a small box [px² of the original image]."""
    area_l: float = Field(96.0**2, gt=0)
    """Area of a large box [px² of the original image]."""
    iou_thr: float = Field(0.5, ge=0, lt=1)
    """A candidate's box IoU with the ground-truth box must exceed this."""
    score_thr: float = Field(0.1, ge=0, lt=1)
    """A candidate's score, the root of its confidence, must exceed this; no effect below sqrt(cand_score_thr)."""
    class_match: bool = True
    """Candidates must have the class of the box."""
    filter_first: bool = True
    """Apply class and score filters before the k best are taken; the reference takes the k best first."""
    mask_thr: float = Field(0.5, gt=0, lt=1)
    """Probability above which a pixel of a candidate counts as object."""
    vote_thr: float = Field(0.5, ge=0, lt=1)
    """Share of candidates that must agree (strictly more)."""
    full_resolution: bool = False
    """Fuse and score masks on every pixel of the training image; otherwise on cells of 4 px, faster and smaller."""
    fusion: Literal["vote", "weighted"] = "weighted"
    """How candidate masks become one: unweighted majority, or weights from score and box IoU."""
    color_weight: float = Field(2.0, ge=0)
    """Trust in the colours of each box when its fused mask is refined; 0: the mask stays as fused. The quality of a
    refined mask is how certain its map is; `score_floor` and `agreement` have no part in it."""
    score_floor: float = Field(1.0, ge=0)
    """f in (score + f) / (1 + f), the part of the detection score in the quality."""
    agreement: bool = True
    """Multiply the quality of a fused mask by the candidates' overlap with it."""
    need_inside: bool = True
    """A mask, fused or refined, of which nothing is inside its box gets quality 0; the reference keeps the uncut mask's
    quality. With `color_weight` candidate masks are then computed around their boxes only, which is faster."""
    min_quality: float = Field(0.0, ge=0, lt=1)
    """Pseudo masks below this quality get quality 0."""

    @property
    def fused_thr(self) -> float:
        """Threshold of fused maps: votes give a share of the candidates, weights a probability."""
        return self.vote_thr if self.fusion == "vote" else self.mask_thr

    @model_validator(mode="after")
    def _check_bounds(self) -> QamConfig:
        if self.k_min > self.k_max:
            raise ValueError(
                f"k_min {self.k_min} exceeds k_max {self.k_max}; k_min must not be larger"
            )
        if self.area_s >= self.area_l:
            raise ValueError(
                f"area_s {self.area_s:g} is not below area_l {self.area_l:g}; it must be smaller"
            )
        if self.color_weight and self.full_resolution:
            raise ValueError(
                "color_weight refines masks by the cell, but full_resolution is true; "
                "set it to false, or color_weight to 0"
            )
        return self


class LossConfig(Config):
    """Pseudo-mask losses."""

    mask_weight: float = Field(2.0, ge=0)
    """Weight of the quality-weighted dice loss."""
    aff_weight: float = Field(0.1, ge=0)
    """Weight of the mask-affinity loss."""
    aff_thr: float = Field(0.5, ge=0, le=1)
    """Neighbours whose pseudo-mask affinity reaches this are pulled together."""
    warmup: Warmup = 1 / 9
    """Linear warm-up of the pseudo-mask losses; 0 by default where there is no teacher, as drawn masks are right."""


class BoxInstConfig(Config):
    """Projection and colour-pairwise losses."""

    size: int = Field(3, ge=1)
    """Side of the neighbourhood [cells]; odd, 1 has no neighbours."""
    dilation: int = Field(2, ge=1)
    """Distance of neighbours [cells of 4 px]."""
    color_thr: float = Field(0.3, gt=0, lt=1)
    """Neighbours at least this similar in colour are pulled together."""
    warmup: Warmup = 1 / 9
    """Linear warm-up of the pairwise loss."""
    truncate_colors: bool = False
    """Cut pooled colours to whole grey levels before they are compared, as the reference does."""
    bottom_px: float = Field(0, ge=0)
    """Rows at the bottom of the original image whose colours are ignored [px]; an artefact of COCO images."""
    pairwise_weight: float = Field(1.0, ge=0)
    """Weight of the pairwise loss."""
    projection_weight: float = Field(1.0, ge=0)
    """Weight of the projection loss."""
    project_inside: bool = False
    """Rows and columns of a box take the mask's shadow from within the box; else stripes along the border of the image
    cast the right shadow too. For runs whose masks end there; costs accuracy in others."""

    @model_validator(mode="after")
    def _check_odd(self) -> BoxInstConfig:
        if self.size % 2 == 0:
            raise ValueError(
                f"size {self.size} is even; a neighbourhood around a cell needs an odd side"
            )
        return self


class PcConfig(Config):
    """Peer-assisted copy-paste."""

    on: bool = True
    """Paste well-masked instances into training images."""
    mode: Literal["instance", "segmentation", "simple"] = "instance"
    """instance: onto a box of the same class; segmentation: onto any box; simple: everything at its old place."""
    p_start: float = Field(0.0, ge=0, le=1)
    """Probability of an attempt at step 0."""
    p_end: float = Field(1.0, ge=0, le=1)
    """Probability of an attempt after the warm-up."""
    warmup: Warmup = 1 / 3
    """Linear change from p_start to p_end."""
    overlap: float = Field(0.0, ge=0, le=0.5)
    """Least overlap of the pasted box with its target box on each axis, as a share of the pasted side."""
    per_image: int = Field(2, ge=0)
    """Instances pasted into one image at most."""
    placements: int = Field(16, ge=1)
    """Random places that are tried for a peer; the one that hides least of the image's boxes is taken."""
    target: Literal["random", "lowest-q"] = "lowest-q"
    """Which instance gets a peer: any of the class, or the one with the lowest quality."""
    paste_weak: bool = True
    """Paste into the weak view as well, whose colours the pairwise loss compares; the reference leaves it as it was."""
    require_better: bool = True
    """Paste only if the peer's quality exceeds the target's."""
    bank_size: int = Field(80, ge=1)
    """Entries of the bank, per process."""
    bank: Literal["images", "classes"] = "classes"
    """images: one entry per label tuple, first come, never refreshed; classes: the newest instances of each class."""
    bank_q_thr: float = Field(0.5, ge=0, le=1)
    """Admission: quality above this."""
    bank_s_thr: float = Field(0.5, ge=0, le=1)
    """Admission: mean candidate score above this."""
    bank_iou_thr: float = Field(0.1, ge=0, le=1)
    """Admission: box IoU with every other box below this."""
    min_area: float = Field(300, ge=0)
    """Floor of a mask's area [px at 800 px training size when relative_limits is on, else px]."""
    box_shift_px: float = Field(10, ge=0)
    """An occluded box is kept if no side moved further than this [px, scaled like min_area]."""
    relative_limits: bool = True
    """Scale min_area and box_shift_px with the image: they are given for a short side of 800 px."""
    keep_sides: bool = True
    """Change a side of an occluded box only if the paste moved it; the reference rounds all boxes outward."""
    drop_slivers: bool = True
    """Drop instances of which less than 1 px is left in width or height; the reference keeps those near the origin."""


class EmaConfig(Config):
    """How the teacher follows the student."""

    momentum: float = Field(0.999, ge=0, lt=1)
    """Upper limit of the momentum."""
    interval: int = Field(1, ge=1)
    """Steps between updates."""
    average_buffers: bool = True
    """Average BatchNorm statistics over all processes before an evaluation or a checkpoint; the reference evaluates
    each process's own and saves those of the first."""
    max_lag: float | None = Field(0.1, gt=0, le=1)
    """Limit of the averaging window 1 / (1 - momentum) as a share of the steps so far; null: the running mean."""


class FcosConfig(Config):
    """Detection head and box targets."""

    use_vfl: bool = True
    """Varifocal classification loss; otherwise focal loss."""
    alpha: float = Field(0.25, gt=0, lt=1)
    """Weight of negatives in the varifocal loss, of positives in the focal loss."""
    gamma: float = Field(2.0, ge=0)
    """Exponent of the classification losses."""
    radius: float = Field(1.5, gt=0)
    """Half side of the centre region [strides]."""
    sizes: tuple[float, float, float, float] = (64, 128, 256, 512)
    """Largest box extent from a location, for all levels but the last [px]; also the unit of the mask head's
    coordinates on each level."""
    iou_eps: float = Field(1e-6, ge=0)
    """Added to intersection and union of the IoU [strides²]; 1 in the reference, which lifts the IoU of small boxes."""
    nms_thr: float = Field(0.6, gt=0, lt=1)
    """IoU above which the weaker of two detections of a class is dropped."""
    topk: int = Field(100, ge=1)
    """Detections per image."""
    mask_boxes: bool = False
    """Detections get the bounds of their masks as boxes, which after a short training fit better than those of the
    head."""
    score_thr: float = Field(0.05, ge=0, lt=1)
    """Floor of a detection's confidence at evaluation."""
    pre_topk: int = Field(1000, ge=1)
    """Detections per level before NMS."""
    tower_std: float = Field(0.01, gt=0)
    """Spread of the weights in the head's towers at the start. A group norm takes their size away again, so it says how
    far an update turns them: an update of AdamW is as large as weights of 0.01 are after a few."""
    start_distance: float = Field(0.0, ge=0)
    """Distance from a location to each side of its box before anything is learnt [strides]. At 0 no box overlaps its
    object, and the varifocal loss, which asks for the overlap, first teaches that there are no objects."""

    @field_validator("sizes")
    @classmethod
    def _check_sizes(
        cls, sizes: tuple[float, float, float, float]
    ) -> tuple[float, float, float, float]:
        if not all(before < after for before, after in pairwise((0, *sizes))):
            extents = ", ".join(f"{size:g}" for size in sizes)
            raise ValueError(f"[{extents}] must be rising extents [px], each above 0")
        return sizes


class CondConfig(Config):
    """Mask branch and dynamic mask head."""

    max_per_image: int = Field(64, ge=1)
    """Proposals per image that get mask losses."""
    features: int = Field(16, ge=1)
    """Channels of the mask features."""
    channels: int = Field(8, ge=1)
    """Width of the dynamic head."""
    layers: int = Field(3, ge=2)
    """Depth of the dynamic head."""
    branch_channels: int = Field(128, ge=8)
    """Width of the mask branch."""
    branch_convs: int = Field(4, ge=0)
    """3x3 convolutions of the mask branch after the levels are summed."""


class BoxSegConfig(Config):
    """All settings of the method."""

    profile: Profile = "fixed"
    """official: the released code with its quirks; paper: as the paper is reported; fixed: repaired, for real use."""
    method: Method = "full"
    """Which parts are on: boxinst, boxteacher, qam (boxteacher + QAM), pc (boxteacher + PC), full (QAM and PC);
    supervised: the same network taught by drawn masks instead, to compare with."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    solver: SolverConfig = SolverConfig()
    teacher: TeacherConfig = TeacherConfig()
    qam: QamConfig = QamConfig()
    loss: LossConfig = LossConfig()
    boxinst: BoxInstConfig = BoxInstConfig()
    pc: PcConfig = PcConfig()
    ema: EmaConfig = EmaConfig()
    fcos: FcosConfig = FcosConfig()
    cond: CondConfig = CondConfig()

    @model_validator(mode="before")
    @classmethod
    def _apply_presets(cls, values: Any) -> Any:
        return apply_presets(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_together(self) -> BoxSegConfig:
        has_mask_losses = bool(self.loss.mask_weight or self.loss.aff_weight)
        uses_drawn = self.data.use_masks != "never"
        needs_teacher = self.pc.on or (has_mask_losses and not uses_drawn)
        if needs_teacher and not self.teacher.on:
            raise ValueError(
                "teacher.on is false, but pc.on, loss.mask_weight or loss.aff_weight need a teacher; "
                "switch them off too (method: boxinst does) or keep the teacher. "
                "The two losses can also learn from drawn masks: "
                "data.use_masks: where_present (method: supervised does)"
            )
        if uses_drawn and not has_mask_losses and not self.pc.on:
            raise ValueError(
                "data.use_masks is where_present, but loss.mask_weight and loss.aff_weight are 0 "
                "and pc.on is false, so nothing would use the drawn masks; "
                "give a weight, or set data.use_masks: never"
            )
        if self.train.evaluate == "teacher" and not self.teacher.on:
            raise ValueError(
                "train.evaluate is teacher, but teacher.on is false; evaluate the student, or both"
            )
        if self.pc.on and self.data.strong == "none":
            raise ValueError(
                "pc.on needs a strong view, but data.strong is none; set data.strong, or pc.on: false"
            )
        return self


def as_steps(value: float, steps: int) -> int:
    """Number of steps that a `Warmup` setting means in a run of `steps` steps (at least 0)."""
    return round(value * steps) if value < 1 else round(value)
