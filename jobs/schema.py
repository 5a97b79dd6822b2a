"""Show which keypoint schema would be used and why, or estimate its sigmas from images that two annotators labelled.

posefleet schema show /data/dogs/val.json --out dog.png    # what an annotation file describes
posefleet schema show coco_wholebody133                    # a shipped schema; without a name: the list of them
posefleet schema show runs/dogs                            # the schema of a run, a checkpoint or a folder of shards
posefleet schema show coco17 crowdpose14 --out union.yaml  # the union for training on several sources
posefleet schema sigmas first.json second.json --out dog.yaml

docs/schemas.md has the format of a schema, and says how a schema is chosen.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from posefleet.command_line import Argument, Place, fail, parse
from posefleet.platform.runtime.errors import PlatformError

if TYPE_CHECKING:
    import numpy as np

    from posefleet.data.schemas.schema import KeypointSchema

LONGEST = 24
"""Letters of a name in the table, at most."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is shown or estimated."""

    action: Annotated[Literal["show", "sigmas"], Argument("ACTION")]
    """show: print and draw a schema. sigmas: estimate sigmas from two annotations of the same images."""
    file: Annotated[str, Argument("FILE")] = ""
    """An annotation file, a data set folder (or FOLDER@SPLIT), a YAML file, the name of a shipped schema, a folder of
    shards, a run or a checkpoint."""
    second: Annotated[str, Argument("SECOND")] = ""
    """sigmas: the annotation file of another annotator, of the same images. show: another one, for their union."""
    more: Annotated[tuple[str, ...], "FILE"] = ()
    """show: further ones that join the union."""
    schema: Annotated[str, "NAME"] = "auto"
    """A shipped schema or a YAML file for the annotations of FILE, or auto: what FILE names."""
    category: Annotated[tuple[str, ...], "NAME"] = ()
    """Categories of an annotation file that are meant; all: every one that lists keypoints. Default: the only one that
    can be meant."""
    out: Annotated[str, Place("FILE")] = ""
    """show: also draw the schema to this picture (.png, .jpg), or write it to this file (.yaml). sigmas: write the
    schema with its new sigmas to this YAML file."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of registered models. Default: as for training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Show a schema or estimate sigmas. Exit status: 0 finished, 2 bad arguments or files."""
    options, _ = parse(Options, arguments, command="schema", about=__doc__ or "")
    try:
        return _show(options) if options.action == "show" else _sigmas(options)
    except (ValueError, OSError, PlatformError) as error:
        fail(error)


# ------------------------------------------------------------------------------------------------------- show


def _show(options: Options) -> int:
    from posefleet.data.schemas.shipped import AUTO, load_schema, shipped_names

    if not options.file:
        lines = [(name, load_schema(name)) for name in shipped_names()]
        sys.stdout.write("".join(f"{n:20}{len(s):4d} keypoints, {len(s.skeleton):2d} edges\n" for n, s in lines))
        return 0
    names = [name for name in (options.file, options.second, *options.more) if name]
    if options.schema != AUTO and len(names) > 1:
        raise ValueError("--schema goes with one annotation file; write the YAML file in its place in a union")
    found = {name: _schema_of(name, options) for name in names}
    schema, file = found[options.file]
    if len(names) > 1:
        from posefleet.data.schemas.union import union_of

        if len(found) < len(names):
            raise ValueError(f"the union of {', '.join(names)}: one of them is there twice")
        every = {name: own for name, (own, _) in found.items()}
        schema, file = union_of(every), ""
        sys.stdout.write(_described(schema) + _labelled_by(schema, every))
    else:
        sys.stdout.write(_described(schema))
    if options.out.endswith((".yaml", ".yml")):
        import yaml

        from posefleet.data.io.files import write_file

        write_file(options.out, yaml.safe_dump(schema.as_dict(), sort_keys=False, width=110).encode())
        sys.stdout.write(f"written to {options.out}; use it with --schema {options.out}\n")
    elif options.out:
        from posefleet.data.images import encode_image
        from posefleet.data.io.files import write_file
        from posefleet.data.schemas.positions import place_keypoints
        from posefleet.platform.visualization.schema_picture import draw_schema

        example = _example(file, schema, options.category) if file else None
        keypoints, image, drawn = example or (place_keypoints(schema), None, "places chosen for the picture")
        ending = f".{options.out.rpartition('.')[2].lower()}"
        if ending not in (".png", ".jpg", ".jpeg"):
            raise ValueError(f"--out {options.out}: a picture is a .png or .jpg, a schema file a .yaml")
        write_file(options.out, encode_image(draw_schema(schema, keypoints, image), ending))
        sys.stdout.write(f"drawn to {options.out}: {drawn}\n")
    return 0


def _schema_of(what: str, options: Options) -> "tuple[KeypointSchema, str]":
    """The schema that a name or path means, and the annotation file that it is from (empty: none)."""
    from posefleet.data.schemas.shipped import AUTO

    schema, file = _found(what, options)
    if options.schema != AUTO and not file:
        raise ValueError(f"--schema {options.schema} goes with an annotation file; {what} has a schema of its own")
    return schema or _schema_of_file(file, options), file


def _schema_of_file(file: str, options: Options) -> "KeypointSchema":
    """The schema of an annotation file, or the one that is given for it."""
    from posefleet.data.coco.file_schema import read_file_schema, read_keypoint_names
    from posefleet.data.schemas.names import difference
    from posefleet.data.schemas.shipped import AUTO, choose_schema

    if options.schema == AUTO:
        return read_file_schema(file, options.category)
    schema = choose_schema(options.schema)
    names = read_keypoint_names(file, options.category)
    if names and (differs := difference(schema.keypoints, names, f"schema {schema.name}", file)):
        raise ValueError(differs)
    return schema


def _found(what: str, options: Options) -> "tuple[KeypointSchema | None, str]":
    """The schema that a name or path has, or the annotation file that it means."""
    import fsspec

    from posefleet.data.coco.layouts import find_annotation_file, has_annotations
    from posefleet.data.coco.source import find_splits, parse_place
    from posefleet.data.schemas.shipped import load_schema, read_schema, shipped_names
    from posefleet.data.shards.layout import MANIFEST, read_manifest
    from posefleet.platform.checkpoints.format import read_content, schema_in
    from posefleet.platform.checkpoints.resolve import find_checkpoint
    from posefleet.platform.runtime.paths import MODELS, resolve_path

    if what in shipped_names():
        return load_schema(what), ""
    if what.endswith((".yaml", ".yml")):
        return read_schema(what), ""
    path, split = resolve_path(what), ""
    if not path.startswith(MODELS):
        if place := parse_place(path):
            path, split = place
        fs, inner = fsspec.core.url_to_fs(path)
        inner = inner.rstrip("/")
        if fs.isfile(inner):
            return None, path
        if not fs.exists(inner):
            raise ValueError(
                f"{what}: no such file, and no shipped schema of this name; there are {', '.join(shipped_names())}"
            )
        if fs.exists(f"{inner}/{MANIFEST}"):
            return read_manifest(path).schema, ""
        splits = [split] if split else find_splits(path)
        if splits or has_annotations(fs, inner):
            file = find_annotation_file(fs, inner, splits[0] if splits else "")
            others = f", the first of the splits {', '.join(splits)}" if len(splits) > 1 else ""
            sys.stderr.write(f"annotations {file}{others}\n")
            return None, str(fs.unstrip_protocol(file))
        if not any(fs.exists(f"{inner}/{name}") for name in ("run.json", "checkpoints", "meta.json")):
            find_annotation_file(fs, inner, split)  # says what it looked for
    return schema_in(read_content(find_checkpoint(path, tracking=options.tracking))), ""


def _described(schema: "KeypointSchema") -> str:
    from posefleet.data.schemas.schema import PARTS

    mirror = dict(zip(schema.keypoints, (schema.keypoints[i] for i in schema.flip_index), strict=True))
    width = min(LONGEST, max(map(len, schema.keypoints)))
    lines = [
        f"schema {schema.name}: {len(schema)} keypoints, {len(schema.skeleton)} edges, "
        f"{len(schema.flip_pairs)} mirror pairs, {len(schema.groups)} groups"
    ]
    lines += [f"  {part:11}{schema.sources.get(part, 'not said')}" for part in PARTS]
    lines += ["", f"  {'':3}  {'keypoint':{width}}  {'side':5}  {'mirror':{width}}  sigma"]
    for index, (name, side, sigma) in enumerate(zip(schema.keypoints, schema.sides, schema.sigmas, strict=True)):
        other = mirror[name] if mirror[name] != name else "-"
        row = f"  {index:3d}  {name:{width}}  {side or '-':5}  {other:{width}}  {sigma:.3f}{_why(schema, name, sigma)}"
        lines.append(row.rstrip())
    if schema.skeleton:
        lines += ["", "  edges: " + ", ".join(f"{a} - {b}" for a, b in schema.skeleton)]
    for group, names in schema.groups.items():
        lines.append(f"  group {group}: {', '.join(names)}")
    return "\n".join(lines) + "\n"


def _labelled_by(schema: "KeypointSchema", sources: "Mapping[str, KeypointSchema]") -> str:
    """Which sources label each keypoint of their union."""
    from posefleet.data.schemas.union import places_in

    places = {name: places_in(schema, own) for name, own in sources.items()}
    width = min(LONGEST, max(map(len, schema.keypoints)))
    lines = ["", "  labelled by"]
    for index, keypoint in enumerate(schema.keypoints):
        who = [name for name, found in places.items() if found[index] is not None]
        lines.append(f"       {keypoint:{width}}  {'all' if len(who) == len(sources) else ', '.join(who)}")
    return "\n".join(lines) + "\n"


def _why(schema: "KeypointSchema", name: str, sigma: float) -> str:
    """Where the sigma of one keypoint comes from, if they do not all come from one place."""
    from posefleet.data.schemas.sigmas import DEFAULT_SIGMA, known_sigma

    source = schema.sources.get("sigmas", "")
    if "inferred" in source and sigma == known_sigma(name):
        return "  known name"
    return "  default" if "default" in source and sigma == DEFAULT_SIGMA else ""


def _example(
    file: str, schema: "KeypointSchema", category: Sequence[str]
) -> "tuple[np.ndarray, np.ndarray | None, str] | None":
    """The keypoints of the person with most labels, NaN where not labelled, the image, and words for both.

    None without any labels.
    """
    import numpy as np

    from posefleet.data.coco.source import find_source, image_path
    from posefleet.data.coco.split import read_coco
    from posefleet.data.errors import DataError
    from posefleet.data.images import decode_image

    best, most, name = None, 0, ""
    for record in read_coco(file, schema, category=category, allow_errors=True).records():
        for person in record["people"]:
            if person["num_keypoints"] > most and not person["iscrowd"]:
                best, most, name = person, person["num_keypoints"], record["file_name"]
    if best is None:
        return None
    points = np.array(best["keypoints"], float).reshape(-1, 3)
    keypoints = np.where(points[:, 2:] > 0, points[:, :2], np.nan)
    try:
        import fsspec

        source = find_source(file, "")
        with fsspec.open(image_path(source, name), "rb") as stream:
            return keypoints, decode_image(stream.read(), what=name), f"{name}, which has the most labelled keypoints"
    except (DataError, OSError):
        return keypoints, None, f"the keypoints of {name}, without the image, which cannot be read"


# ------------------------------------------------------------------------------------------------------- sigmas


def _sigmas(options: Options) -> int:
    import dataclasses

    import numpy as np
    import yaml

    from posefleet.data.coco.file_schema import read_file_schema
    from posefleet.data.coco.split import read_coco
    from posefleet.data.evaluation.annotators import LEAST_OVERLAP, LEAST_PAIRS, annotator_deviations
    from posefleet.data.io.files import write_file
    from posefleet.data.schemas.shipped import choose_schema

    if not options.second:
        raise ValueError("sigmas needs two annotation files of the same images: posefleet schema sigmas FILE SECOND")
    first, second = options.file, options.second
    schema = choose_schema(options.schema, lambda: read_file_schema(first, options.category))
    found = annotator_deviations(
        read_coco(first, schema, category=options.category),
        read_coco(second, schema, category=options.category),
        schema,
    )
    known = np.isfinite(found.sigmas)
    lines = [
        f"{found.images:,} images in both files (by file name), {found.pairs:,} people in both (boxes that overlap by "
        f"{LEAST_OVERLAP:.0%} or more)",
        f"  {'keypoint':{LONGEST}}  people   sigma   plain mean   now",
    ]
    for index, name in enumerate(schema.keypoints):
        estimate = f"{found.sigmas[index]:7.4f}  {found.plain[index]:10.4f}" if known[index] else f"{'-':>7}  {'-':>10}"
        lines.append(f"  {name:{LONGEST}}  {found.counts[index]:6d} {estimate}  {schema.sigmas[index]:7.4f}")
    if not known.all():
        lines.append(f"  '-': fewer than {LEAST_PAIRS} people, or no difference at all; the sigma stays as it is")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.out:
        sigmas = [round(float(e), 4) if ok else s for e, ok, s in zip(found.sigmas, known, schema.sigmas, strict=True)]
        source = f"estimated from {found.pairs} people whom two annotators labelled"
        if not known.all():
            rest = ", ".join(name for name, ok in zip(schema.keypoints, known, strict=True) if not ok)
            source += f"; {schema.sources.get('sigmas', 'as before')} for {rest}"
        sources = {**schema.sources, "sigmas": source}
        name = schema.name if schema.name.endswith("_estimated") else f"{schema.name}_estimated"
        new = dataclasses.replace(schema, name=name, sigmas=tuple(sigmas), sources=sources)
        write_file(options.out, yaml.safe_dump(new.as_dict(), sort_keys=False, width=110).encode())
        sys.stdout.write(f"written to {options.out}; use it with --schema {options.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
