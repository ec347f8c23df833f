"""Whether guidance has two branches to give stages of their own to."""

from ..configs.schema import Config


def check_branches(config: Config, guided: bool) -> None:
    """ValueError where parallel.cfg=split has no second branch to give stages to."""
    mode, way_out = config.sampling.guidance_mode, "parallel.cfg=batch"
    if config.parallel.cfg == "batch":
        return
    asked = "parallel.cfg=split gives the unconditional branch of guidance stages of its own"
    if mode == "batched":
        raise ValueError(
            f"{asked}, and sampling.guidance_mode=batched puts both branches into one forward; set "
            f"sampling.guidance_mode=sequential, or {way_out}"
        )
    if not guided:
        why = f"sampling.guidance_mode={mode}"
        if mode != "none":
            s = config.sampling
            why = f"sampling.guidance={s.guidance:g}"
            if s.guidance > 1:
                why += f" from level {s.guidance_from:g} to {s.guidance_to:g}"
        raise ValueError(
            f"{asked}, and {why} guides no step, so half of the devices would do nothing; set "
            f"{way_out}, or turn guidance on if the model was made for it"
        )
