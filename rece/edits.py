"""What all edits of a pipeline share, and two kinds of them: changed weights, and hooks that act while it runs.

The third kind, one map for all layers that read the prompt, is `rece.eraser.Eraser`.
"""

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rece import families, files, layers, solver, texts

CARRIED = "_rece_edit"  # attribute of a part with changed weights or hooks: its Carried
HOOK = "rece_hook"  # the submodule that holds the tensors of hooks, so that they count among the part's weights


@dataclass
class Carried:
    """What an edit leaves on the parts that it changed: itself, the original weights on the CPU, and its hooks."""

    edit: "Edit"
    weights: dict[str, Tensor]
    handles: list


def check_unedited(pipe: DiffusionPipeline) -> None:
    """Raises ValueError if the pipeline carries an edit of any kind, TypeError if its kind is not supported."""
    families.model(pipe)
    if any(hasattr(part, CARRIED) or hasattr(part, layers.KEPT) for part in pipe.components.values()):
        raise ValueError("the pipeline carries an eraser: remove it before computing another one")


class Edit:
    """An edit of a pipeline that can be applied, taken back to the bit, saved and loaded.

    A kind of edit says what it is made of (`tensors`, `of`), which parts of a pipeline it changes (`parts`), and how
    (`apply`, `remove`, `carried_by`). provenance: where it came from, JSON-able.
    """

    kinds: dict[str, type["Edit"]] = {}  # by what a file's metadata call them
    provenance: dict

    def __init_subclass__(cls, kind: str | None = None):
        if kind is not None:
            cls.kind, Edit.kinds[kind] = kind, cls

    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator[DiffusionPipeline]:
        """The pipeline with the edit applied, inside of the block alone: `with edit.on(pipe): …`."""
        self.apply(pipe)
        try:
            yield pipe
        finally:
            self.remove(pipe)

    def copy_of(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """A pipeline with the edit applied to copies of the parts that it changes; everything else is shared."""
        edited = copy.copy(pipe)
        edited.register_modules(**{part: copy.deepcopy(getattr(pipe, part)) for part in self.parts(pipe)})
        return self.apply(edited)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all. Missing folders are made."""
        self._write(path, self.tensors())

    def _write(self, path: str | Path, tensors: dict[str, Tensor]) -> None:
        note = {"format": "pt", "kind": self.kind, "rece": json.dumps(self.provenance)}
        files.write(tensors, Path(path), note | {"sha256": files.digest(tensors, note)})

    def digest(self) -> str:
        """The sha256, in hex, of what it does, whatever its provenance says."""
        return files.digest(self.tensors(), {"kind": self.kind})

    @classmethod
    def load(cls, path: str | Path) -> "Edit":
        """Read a file that an edit's `save` wrote: `Edit.load` one of any kind, `Eraser.load` a map alone.

        Raises FileNotFoundError, PermissionError, or ValueError if it is not a whole file of such an edit.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no eraser file at {path}")
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{path} may not be read: change its permissions")
        import_module("rece.eraser")  # which adds its kind, the map
        try:
            with safe_open(path, framework="pt") as file:
                note = file.metadata() or {}
                provenance, found = json.loads(note["rece"]), Edit.kinds[note.get("kind", "map")]
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if not isinstance(provenance, dict):
                raise ValueError("its provenance is no set of names and values")
            if "sha256" in note and note.pop("sha256") != files.digest(tensors, note):
                raise ValueError("it was changed after it was written")
            if issubclass(found, cls):
                return found.of(tensors, provenance)
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a whole eraser file, make it again with Eraser.save ({error})") from None
        raise ValueError(f"{path} holds an edit of kind {found.kind}, not {cls.kind}: read it with Edit.load")

    def fits(self, pipe: DiffusionPipeline) -> None:
        """Raises ValueError if the pipeline carries an edit of another kind, or has other text encoders."""
        for name, part in pipe.components.items():
            if hasattr(part, CARRIED) or (hasattr(part, layers.KEPT) and self.kind != "map"):
                raise ValueError(f"pipe.{name} carries an edit already: remove it first")
        made_for = self.provenance.get("text_encoders")
        if made_for and texts.encoders(pipe) != made_for:
            raise ValueError(f"this eraser is for {made_for}, but the pipeline has {texts.encoders(pipe)}")
        known, own = self.provenance.get("fingerprint"), texts.fingerprint(pipe)
        if known and own and not solver.alike(known, own):  # a sequential offload hides the weights
            raise ValueError("this eraser is for a text encoder with other weights: make one for this pipeline")


class Carrying(Edit):
    """An edit whose parts hold what is needed to take it back: changed weights, or hooks."""

    def carried_by(self, pipe: DiffusionPipeline) -> bool:
        """Whether the pipeline carries this edit. Raises ValueError if it carries another one."""
        found = [carried.edit for carried in self._carried(pipe)]
        own = self.tensors()
        for edit in found:
            other = edit.tensors()
            if edit.provenance != self.provenance or other.keys() != own.keys():
                raise ValueError("the pipeline carries another edit: remove that one")
            if not all(torch.equal(tensor, other[name]) for name, tensor in own.items()):
                raise ValueError("the pipeline carries another edit: remove that one")
        return bool(found)

    @torch.no_grad()
    def remove(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """Restore the very bits that `apply` found, take the hooks off, and return the pipeline.

        Raises ValueError if the pipeline carries no edit, or another one.
        """
        if not self.carried_by(pipe):
            raise ValueError("the pipeline carries no edit: there is nothing to remove")
        for carried in self._carried(pipe):
            _undo(pipe, carried)
        return pipe

    def _carried(self, pipe: DiffusionPipeline) -> list[Carried]:
        parts = [getattr(pipe, name, None) for name in self.parts(pipe)]
        found = [getattr(part, CARRIED) for part in parts if hasattr(part, CARRIED)]
        return list({id(carried): carried for carried in found}.values())


def _undo(pipe: DiffusionPipeline, carried: Carried) -> None:
    for handle in carried.handles:
        handle.remove()
    for name, weight in carried.weights.items():
        _parameter(pipe, name).copy_(weight)
    for name in carried.edit.parts(pipe):
        part = getattr(pipe, name)
        vars(part).pop(CARRIED, None)
        part._modules.pop(HOOK, None)


class Weights(Carrying, kind="weights"):
    """Changes of parameters, by the part's name and theirs, such as "unet.conv_in.weight".

    A change is one of three, on the CPU. Floats of the parameter's shape are added to it. So is the product of a pair
    of floats, (out, r) and (r, in). Whole numbers are the flat indices of entries that become zero.
    Raises ValueError naming the parameter for anything else, or where a number is not finite.
    """

    def __init__(self, changes: dict[str, Tensor | tuple[Tensor, Tensor]], provenance: dict | None = None):
        self.changes = {name: _detached(change) for name, change in changes.items()}
        self.provenance = dict(provenance or {})
        for name, change in self.changes.items():
            sides = change if isinstance(change, tuple) else (change,)
            if len(sides) == 2 and (any(side.ndim != 2 for side in sides) or sides[0].shape[1] != sides[1].shape[0]):
                raise ValueError(f"changes[{name}] must be a pair of shapes (out, r) and (r, in)")
            if not all(torch.isfinite(side).all() for side in sides):
                raise ValueError(f"changes[{name}] holds values that are not finite")
            whole = len(sides) == 1 and sides[0].dtype in (torch.int32, torch.int64)
            if not whole and not all(side.is_floating_point() for side in sides):
                raise ValueError(f"changes[{name}] must be floats, a pair of them, or whole numbers")

    def __repr__(self) -> str:
        return f"Weights({self.provenance.get('concepts', 'unknown concepts')}, {len(self.changes)} parameters)"

    def parts(self, pipe: DiffusionPipeline) -> tuple[str, ...]:
        """The parts of a pipeline that it changes."""
        return tuple(sorted({name.split(".")[0] for name in self.changes}))

    @torch.no_grad()
    def apply(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """Change the parameters in their own dtype and place, and return the pipeline.

        Raises ValueError, and changes nothing, if the pipeline carries an edit, lacks a parameter or has it in another
        shape, or if a changed weight is not finite.
        """
        self.fits(pipe)
        changed = {name: self._changed(pipe, name) for name in self.changes}
        carried = Carried(self, {}, [])
        for part in self.parts(pipe):
            setattr(getattr(pipe, part), CARRIED, carried)
        for name, weight in changed.items():
            own = _parameter(pipe, name)
            carried.weights[name] = own.detach().to("cpu", copy=True)
            own.copy_(weight)
        return pipe

    def readers(self, pipe: DiffusionPipeline, path: str = "tokens") -> dict[str, Tensor]:
        """The changed weights of layers that read a path, by the layer's name: what `certify` takes as `shipped`.

        Raises ValueError if the pipeline carries an edit or is another one, as `apply` does.
        """
        self.fits(pipe)
        names = {f"{families.part(pipe)}.{name}.weight": name for name in layers.prompt_layers(pipe, path)}
        return {names[name]: self._changed(pipe, name) for name in self.changes if name in names}

    def _changed(self, pipe: DiffusionPipeline, name: str) -> Tensor:
        """What the parameter becomes, on its device."""
        weight, change = _parameter(pipe, name).detach(), self.changes[name]
        if isinstance(change, tuple):
            change = change[0].to(weight.device) @ change[1].to(weight.device)
        if change.is_floating_point():
            if change.shape != weight.shape:
                raise ValueError(f"changes[{name}] is {tuple(change.shape)}, but the weight {tuple(weight.shape)}")
            wide = torch.promote_types(weight.dtype, torch.float32)
            found = (weight.to(wide) + change.to(weight.device, wide)).to(weight.dtype)
        elif len(change) and not 0 <= change.min() <= change.max() < weight.numel():
            raise ValueError(f"changes[{name}] has indices outside of the weight's {weight.numel()} entries")
        else:
            found = weight.flatten().index_fill(0, change.to(weight.device, torch.int64), 0).view_as(weight)
        if not torch.isfinite(found).all():
            raise ValueError(f"the changed weight {name} is not finite in {weight.dtype}: use a wider dtype")
        return found

    def tensors(self) -> dict[str, Tensor]:
        """What a file of it holds."""
        found = {}
        for name, change in self.changes.items():
            if isinstance(change, tuple):
                found |= {f"up|{name}": change[0], f"down|{name}": change[1]}
            else:
                found[f"{'add' if change.is_floating_point() else 'zero'}|{name}"] = change
        return found

    @classmethod
    def of(cls, tensors: dict[str, Tensor], provenance: dict) -> "Weights":
        """The edit of a file's tensors. Raises KeyError or ValueError if they are not those of such an edit."""
        changes = {}
        for key, tensor in tensors.items():
            form, _, name = key.partition("|")
            if form == "up":
                changes[name] = (tensor, tensors[f"down|{name}"])
            elif form in ("add", "zero"):
                changes[name] = tensor
            elif form != "down":
                raise ValueError(f"{key!r} is no change of a parameter")
        return cls(changes, provenance)


class Hooks(Carrying, kind="hooks"):
    """Something that acts while the model runs, as a file of `rece.methods` says.

    rule: the name of that file. Its class Hook, a torch module, is made from the tensors and settings, becomes a part
    of the model that reads the prompt, or of what the file calls PART, and its `attach(pipe)` returns the handles of
    what it hooked there.
    Whoever holds the pipeline can take hooks off. So they protect a service, not weights that are given away.
    """

    def __init__(self, rule: str, tensors: dict[str, Tensor], settings: dict, provenance: dict | None = None):
        self.rule, self.settings = rule, settings
        self.state = {name: _detached(tensor) for name, tensor in tensors.items()}
        self.provenance = dict(provenance or {}) | {"rule": rule, "settings": settings}
        if not str(rule).isidentifier() or not hasattr(self._module(), "Hook"):
            raise ValueError(f"rule: the method {rule!r} has no hook")

    def __repr__(self) -> str:
        return f"Hooks({self.provenance.get('concepts', 'unknown concepts')}, {self.rule})"

    def _module(self):
        try:
            return import_module(f"rece.methods.{self.rule}")
        except ModuleNotFoundError:
            raise ValueError(f"rule: there is no method {self.rule!r}") from None

    def parts(self, pipe: DiffusionPipeline) -> tuple[str, ...]:
        """The parts of a pipeline that it changes."""
        return (getattr(self._module(), "PART", families.part(pipe)),)

    def apply(self, pipe: DiffusionPipeline) -> DiffusionPipeline:
        """Hook the pipeline's model, and return the pipeline. Raises ValueError if it carries an edit."""
        self.fits(pipe)
        model = getattr(pipe, *self.parts(pipe))
        hook = self._module().Hook(self.state, **self.settings).to(model.device, model.dtype)
        name = hashlib.sha256(json.dumps([self.rule, self.settings], sort_keys=True).encode()).digest()
        hook.register_buffer("identity", torch.frombuffer(bytearray(name), dtype=torch.uint8))
        model.add_module(HOOK, hook)
        carried = Carried(self, {}, [])
        setattr(model, CARRIED, carried)
        try:
            carried.handles += hook.attach(pipe)
        except BaseException:
            _undo(pipe, carried)
            raise
        return pipe

    def tensors(self) -> dict[str, Tensor]:
        """What a file of it holds."""
        return dict(self.state)

    @classmethod
    def of(cls, tensors: dict[str, Tensor], provenance: dict) -> "Hooks":
        """The edit of a file's tensors. Raises KeyError or ValueError if the file is not of such an edit."""
        return cls(provenance["rule"], tensors, provenance["settings"], provenance)


def _detached(change):
    if isinstance(change, tuple):
        return tuple(side.detach().cpu().contiguous() for side in change)
    return change.detach().cpu().contiguous()


def _parameter(pipe: DiffusionPipeline, name: str) -> torch.nn.Parameter:
    part, _, rest = name.partition(".")
    found = dict(getattr(pipe, part).named_parameters()).get(rest) if hasattr(pipe, part) else None
    if found is None or found.is_meta:
        raise ValueError(f"changes[{name}]: the pipeline has no such parameter in memory")
    return found
