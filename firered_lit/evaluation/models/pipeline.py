"""Any edit pipeline of diffusers, by its own class."""

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from firered_lit.errors import UserError, naming
from firered_lit.evaluation.models import fingerprints
from firered_lit.evaluation.protocols import Item
from firered_lit.places import user_path

if TYPE_CHECKING:
    from PIL import Image

Precision = Literal["float32", "bfloat16", "float16"]
FIXED = ("image", "prompt", "num_inference_steps", "generator")  # what an evaluation gives itself


class Pipeline:
    """Draw with a pipeline of diffusers as it is.

    Args:
        model: A diffusers folder or a hub id.
        pipeline: The class in diffusers, as FluxKontextPipeline; that of model_index.json when None.
        steps: Of the sampler; None for the pipeline's own default.
        arguments: More arguments of the call, as {guidance_scale: 2.5}; plain values.
        several: Whether several source pictures are given as a list; else the first one alone.
        dtype: Precision of the weights.

    Raises:
        UserError: An argument is none that can be chosen. Whether diffusers has the pipeline is seen when it is loaded.
    """

    parallel = 1

    def __init__(
        self,
        model: str,
        pipeline: str | None = None,
        steps: int | None = None,
        arguments: Mapping[str, Any] | None = None,
        several: bool = False,
        dtype: Precision = "bfloat16",
    ) -> None:
        self.model = model
        self.pipeline = pipeline
        self.steps = steps
        self.arguments = dict(arguments or {})
        self.several = several
        self.dtype = dtype
        self._loaded: Any = None
        taken = [name for name in FIXED if name in self.arguments]
        if taken:
            raise UserError(f"model {model}: arguments.{taken[0]}: is given by the evaluation itself")
        if dtype not in get_args(Precision):
            raise UserError(f"model {model}: dtype={dtype}: choose one of {', '.join(get_args(Precision))}")

    def fingerprint(self) -> str:
        """Return a hash of the weights' files and the settings; of a hub id, of its name."""
        folder = user_path(self.model)
        files = {}
        if folder.is_dir():
            for path in sorted(folder.rglob("*")):
                if path.suffix in (".json", ".safetensors"):
                    files[str(path.relative_to(folder))] = fingerprints.of_file(path)
        return fingerprints.of_settings(
            kind="pipeline",
            model=files or self.model,
            pipeline=self.pipeline,
            steps=self.steps,
            arguments=self.arguments,
            several=self.several,
            dtype=self.dtype,
        )

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image":
        """Return the edited picture."""
        import torch

        pipeline = self.loaded
        call = dict(self.arguments)
        call["prompt"] = item.instruction
        call["generator"] = torch.Generator().manual_seed(seed)
        if sources:
            call["image"] = list(sources) if self.several else sources[0]
        if self.steps is not None:
            call["num_inference_steps"] = self.steps
        return pipeline(**call).images[0]

    def close(self) -> None:
        """Forget the weights."""
        self._loaded = None

    @property
    def loaded(self) -> Any:
        """The pipeline, loaded when it is first asked for.

        Raises:
            UserError: It cannot be loaded, or its call takes other arguments.
        """
        if self._loaded is None:
            import torch

            kind = pipeline_class(self.pipeline)
            if self.pipeline is not None:
                self._check_arguments(kind)
            with naming(f"model {self.model}"):
                pipeline = kind.from_pretrained(
                    self.model,
                    torch_dtype=getattr(torch, self.dtype),
                    use_safetensors=True,
                    trust_remote_code=False,
                )
            self._check_arguments(type(pipeline))
            pipeline.set_progress_bar_config(disable=True)
            self._loaded = pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        return self._loaded

    def _check_arguments(self, kind: type) -> None:
        """Refuse arguments that a pipeline's call does not have."""
        known = inspect.signature(kind.__call__).parameters
        for name in ("image", "prompt", *self.arguments):
            if name not in known:
                raise UserError(f"model {self.model}: {kind.__name__} takes no {name!r}")


def pipeline_class(name: str | None) -> Any:
    """Return a pipeline class of diffusers by its name.

    Raises:
        UserError: There is none of that name.
    """
    import diffusers

    if name is None:
        return diffusers.DiffusionPipeline
    kind = getattr(diffusers, name, None) if name.isidentifier() else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise UserError(f"pipeline={name}: diffusers {diffusers.__version__} has no pipeline of that name")
    return kind
