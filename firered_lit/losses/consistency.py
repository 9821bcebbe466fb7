"""The consistency loss: the same identity in the estimated and in the true image, region by region.

FireRed-Image-Edit (2602.13344), eq. 6-8. Pixel coordinates are (x, y) with integers at pixel centres, as face libraries
give them.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, grid_sample

from firered_lit.errors import UserError
from firered_lit.losses.flow_matching import at_least_float32

FACE_SIZE = (112, 112)
FACE_TEMPLATE = (  # left eye, right eye, nose, left and right corner of the mouth (as seen), ArcFace's alignment
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


def identity_weight(sigma: Tensor, *, eta: float, cutoff: float = 0.9) -> Tensor:
    """lambda(sigma), like sigma: eta sigma^2 under `cutoff`, 0 from it on. Eq. 7."""
    return torch.where(sigma < cutoff, eta * sigma.square(), torch.zeros_like(sigma))


def similarity_transform(landmarks: Tensor, template: Tensor) -> Tensor:
    """The rotation, scale and shift (N, 2, 3) that take landmarks (N, P, 2) nearest to template (P, 2), never mirrored.

    Least squares (Umeyama 1991). In the plane a rotation with scale is one complex number, so the fit is a division.
    Raises ValueError when the landmarks of a region coincide.
    """
    points = landmarks.double()
    goal = template.double().to(landmarks.device)
    centre = points.mean(-2, keepdim=True)
    goal_centre = goal.mean(-2, keepdim=True)

    # Both sets of points around 0, as complex numbers: the fit is w = a z.
    z = torch.view_as_complex((points - centre).contiguous())
    w = torch.view_as_complex((goal - goal_centre).contiguous())
    size = z.abs().square().sum(-1)
    if bool((size == 0).any()):
        raise ValueError("similarity_transform: all landmarks of a region coincide")
    a = (z.conj() * w).sum(-1) / size

    # The same as a matrix, and the shift.
    linear = torch.stack([a.real, -a.imag, a.imag, a.real], -1).reshape(-1, 2, 2)
    offset = goal_centre.mT - linear @ centre.mT
    return torch.cat([linear, offset], -1).to(at_least_float32(landmarks).dtype)


def box_transform(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The affine maps (N, 2, 3) that take boxes (N, 4: left, top, right, bottom) to a canvas (height, width).

    Boxes are edges, as in PIL's crop: the first pixel of a row lies between 0 and 1, its centre at coordinate 0.
    """
    left, top, right, bottom = at_least_float32(boxes).unbind(-1)
    x = size[1] / (right - left)  # scale of each axis
    y = size[0] / (bottom - top)
    zero = torch.zeros_like(x)
    rows = [x, zero, x * (0.5 - left) - 0.5, zero, y, y * (0.5 - top) - 0.5]
    return torch.stack(rows, -1).reshape(-1, 2, 3)


def region_transforms(
    regions: Tensor | None, count: int, size: tuple[int, int], canvas: tuple[int, int], whole: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the owners (N,) and maps (N, 2, 3) of all regions of `count` samples onto a canvas.

    Regions whose points coincide are left out.

    Args:
        regions: (B, R, P, 2), x, y in pixels of the five points of a face or of a box's two corners, NaN where a region
            is missing, and for the last points of a box beside faces.
        count: samples, B.
        size: (height, width) of the samples' images.
        canvas: (height, width) of what the maps draw on.
        whole: a sample without any region counts as one, its whole image.

    Raises:
        UserError: another number of points.
    """
    if regions is not None and regions.shape[2] not in (2, len(FACE_TEMPLATE)):
        raise UserError(f"regions: {regions.shape[2]} points each; a face has {len(FACE_TEMPLATE)}, a box 2")
    owner, maps = [], []
    for i in range(count):
        # The sample's regions, without their missing points.
        own = []
        if regions is not None:
            known = [points[points.isfinite().all(-1)] for points in regions[i].detach().cpu()]
            own = [points for points in known if _usable(points)]
        if not own and whole:
            own = [torch.tensor([[0.0, 0.0], [float(size[1]), float(size[0])]])]

        for points in own:
            owner.append(i)
            maps.append(_onto(points, canvas))
    owners = torch.tensor(owner, dtype=torch.long)
    return owners, torch.stack(maps) if maps else torch.zeros(0, 2, 3)


def _usable(points: Tensor) -> bool:
    """Return whether points are a box with an inside, or all landmarks of a face that do not coincide."""
    if len(points) == 2:
        return bool((points[1] > points[0]).all())
    return len(points) == len(FACE_TEMPLATE) and bool((points.amax(0) > points.amin(0)).any())


def _onto(points: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Return the map (2, 3) of a region's points (P, 2) onto a canvas (height, width)."""
    if len(points) == 2:
        return box_transform(points.reshape(1, 4), canvas)[0].float()
    scale = torch.tensor([canvas[1] / FACE_SIZE[1], canvas[0] / FACE_SIZE[0]])
    template = (torch.tensor(FACE_TEMPLATE) + 0.5) * scale - 0.5  # integers are pixel centres
    return similarity_transform(points[None].float(), template)[0].float()


def seen_boxes(transform: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the box of an image that each canvas shows: (N, 4) int, left, top, right, bottom in pixels.

    The neighbours that `warp` mixes in are inside. A canvas that shows nothing of the image has no area.
    """
    # The canvas's corners, mapped back onto the image.
    x = torch.tensor([0.0, canvas[1] - 1.0], dtype=torch.float64)
    y = torch.tensor([0.0, canvas[0] - 1.0], dtype=torch.float64)
    corners = torch.cartesian_prod(x, y).mT  # (2, 4)
    linear = transform[:, :, :2].double().cpu()
    offset = transform[:, :, 2:].double().cpu()
    shown = torch.linalg.solve(linear, corners - offset)

    # The box around them, cut to the image.
    edge = torch.tensor([size[1], size[0]], dtype=torch.float64)
    low = shown.amin(-1).floor().clamp(min=0)
    high = (shown.amax(-1).floor() + 2).minimum(edge)
    return torch.cat([low, high.maximum(low)], -1).long()


def in_crop(transform: Tensor, left: int, top: int) -> Tensor:
    """Return a map (N, 2, 3) of an image, for a crop of it whose first pixel is (left, top)."""
    corner = torch.tensor([left, top]).to(transform)
    linear = transform[:, :, :2]
    offset = transform[:, :, 2:] + linear @ corner[:, None]
    return torch.cat([linear, offset], -1)


def warp(images: Tensor, transform: Tensor, size: tuple[int, int]) -> Tensor:
    """images (N, C, H, W) seen through transform (N, 2, 3), on canvases (N, C, *size). Bilinear, differentiable.

    Pixel p of the canvas shows the image at transform^-1(p); outside of the image is 0, mid grey.
    """
    transform = transform.to(images.device, torch.float64)
    y = torch.arange(size[0], dtype=torch.float64, device=images.device)
    x = torch.arange(size[1], dtype=torch.float64, device=images.device)
    canvas = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(1, -1, 2)
    source = torch.linalg.solve(transform[:, :, :2], canvas.mT - transform[:, :, 2:]).mT
    sides = source.new_tensor([images.shape[-1], images.shape[-2]])
    grid = ((2 * source + 1) / sides - 1).reshape(-1, *size, 2)
    return grid_sample(images, grid.to(images), mode="bilinear", padding_mode="zeros", align_corners=False)


def identity_loss(features: Tensor, target: Tensor, owner: Tensor | None = None, batch: int = 1) -> Tensor:
    """1 - cosine of the regions' features (N, D), averaged over the regions of each sample -> (batch,). Eq. 8.

    owner (N,) int: the sample that region i belongs to; a sample without regions gets 0.
    """
    features, target = at_least_float32(features), at_least_float32(target)
    distance = 1 - cosine_similarity(features, target, dim=-1)
    owner = torch.zeros(len(distance), dtype=torch.long) if owner is None else owner
    zeros, owner = distance.new_zeros(batch), owner.to(distance.device)
    count = zeros.index_add(0, owner, torch.ones_like(distance))
    return zeros.index_add(0, owner, distance) / count.clamp(min=1)
