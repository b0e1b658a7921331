"""Compares the backbones with timm's, level by level, on random weights.

    python3 tests/reference/backbone_parity.py --features build/cpu/bin/features

Checks that every level agrees within 1e-5 (of 1, or of the level's largest value where that is more), that weights
load under timm's names, features_only names and the original releases' names with equal results, and that one
error names every unknown, missing and misshapen key.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

import timm
import torch
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
SQUARE, LARGE, WIDE = (224, 224), (448, 448), (256, 352)
SIZES = {
    "pvt_v2_b0": (SQUARE, LARGE, WIDE),
    "pvt_v2_b1": (WIDE,),
    "pvt_v2_b2": (SQUARE, LARGE, WIDE),
    "pvt_v2_b2_li": (LARGE, WIDE),
    "pvt_v2_b3": (WIDE,),
    "pvt_v2_b4": (LARGE,),
    "pvt_v2_b5": (LARGE,),
    "edgenext_small": (SQUARE, LARGE, WIDE),
    "edgenext_base": (WIDE,),
    # At 224 the last stage has one window and no shift, at 448 four windows that shift, in between it is padded.
    "swin_tiny_patch4_window7_224": (SQUARE, LARGE, WIDE),
    "swin_small_patch4_window7_224": (WIDE,),
    "swin_base_patch4_window7_224": (SQUARE,),
    "convnext_tiny": (SQUARE, LARGE, WIDE),
    "convnext_small": (WIDE,),
    "convnext_base": (SQUARE,),
}


def create(name, size, **options):
    """timm's model for images of a size; only Swin is made for one."""
    return timm.create_model(name, **({"img_size": size} if name.startswith("swin") else {}), **options).eval()


def randomise(model):
    """Weights at which nothing is trivial: attention far from uniform, norms and biases far from 1 and 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.normal_(0, module.in_features**-0.5)
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.normal_(1, 0.2)
        if getattr(module, "bias", None) is not None:
            module.bias.normal_(0, 0.1)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "gamma_xca")):  # else the branches would not count
            parameter.normal_(0, 0.3)
        if name.endswith(("relative_position_bias_table", "temperature")):
            parameter.normal_(1, 0.5)


def original_name(key):
    """timm's name -> the name in the original PVT release."""
    key = re.sub(r"^patch_embed\.", "patch_embed1.", key)
    key = re.sub(r"^stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.blocks", lambda m: f"block{int(m[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.norm", lambda m: f"norm{int(m[1]) + 1}", key)
    return key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")


class Program:
    def __init__(self, path, folder):
        self.path, self.folder = path, folder

    def load(self, state):
        """Takes the weights of the runs that follow."""
        save_file({k: v.contiguous() for k, v in state.items()}, self.folder / "weights")

    def run(self, name, images):
        """Standard output and the levels, or standard error and None."""
        weights, inputs, outputs = (str(self.folder / f) for f in ("weights", "images", "levels"))
        save_file({"images": images}, inputs)
        done = subprocess.run([self.path, "--backbone", name, "--weights", weights, "--input", inputs,
                               "--output", outputs], capture_output=True, text=True)
        if done.returncode != 0:
            return done.stderr, None
        levels = load_file(outputs)
        return done.stdout, [levels[f"level{i + 1}"] for i in range(4)]


def worst_error(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape, f"shape {tuple(a.shape)} here, {tuple(b.shape)} in timm"
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in zip(ours, theirs))


def check_levels(program):
    failures = 0
    for name, sizes in SIZES.items():
        errors = []
        for size in sizes:
            model = create(name, size)
            randomise(model)
            program.load(model.state_dict())
            images = torch.randn(1, 3, *size)
            message, ours = program.run(name, images)
            assert ours is not None, message
            errors.append(worst_error(ours, model.forward_intermediates(images, intermediates_only=True)))
        bad = max(errors) > TOLERANCE
        failures += bad
        print(f"{name:28s}", *(f"{h}x{w} {e:.1e}" for (h, w), e in zip(sizes, errors)), "FAILED" if bad else "ok",
              flush=True)
    return failures


def original_convnext_name(key):
    """timm's name -> the name in the original ConvNeXt release."""
    key = re.sub(r"^stem\.", "downsample_layers.0.", key)
    key = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", key)
    key = re.sub(r"^head\.norm", "norm", key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv"))
    return key.replace("head.fc", "head")


def old_swin_state(state):
    """As older files of Swin have it: downsampling at the end of the stage before, masks and indices beside weights."""
    old = {re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", k): v
           for k, v in state.items()}
    return old | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
                  "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)}


def check_names(program):
    for name, rename in (("pvt_v2_b0", original_name), ("edgenext_small", None),
                         ("swin_tiny_patch4_window7_224", None), ("convnext_tiny", original_convnext_name)):
        size = (224, 256)
        model = create(name, size)
        randomise(model)
        images = torch.randn(1, 3, *size)
        timm_state = model.state_dict()
        features = timm.create_model(name, features_only=True)
        flat_names = set(features.state_dict())
        flat = {k: v for k, v in ((re.sub(r"^(stages|stem|layers)\.(\d)", r"\1_\2", k), v)
                                  for k, v in timm_state.items()) if k in flat_names}
        assert set(flat) == flat_names, f"features_only names of {name} are not what this test takes them for"
        states = [timm_state, flat]
        if rename:
            states.append({rename(k): v for k, v in timm_state.items()})
        if name.startswith("swin"):
            states.append(old_swin_state(timm_state))
        theirs = model.forward_intermediates(images, intermediates_only=True)
        for state in states:
            expected = f"loaded {len(flat)} tensors, ignored {len(state) - len(flat)} of the classifier\n"
            program.load(state)
            message, ours = program.run(name, images)
            assert message == expected, f"{name}: {message}"
            assert worst_error(ours, theirs) <= TOLERANCE, f"{name}: levels differ under other names"


def check_errors(program):
    state = dict(timm.create_model("pvt_v2_b0").state_dict())
    state["stages.1.blocks.9.norm1.weight"] = torch.ones(64)
    del state["stages.2.norm.bias"], state["patch_embed.proj.bias"]
    state["stages.3.norm.weight"] = torch.ones(7)
    program.load(state)
    message, ours = program.run("pvt_v2_b0", torch.randn(1, 3, 64, 64))
    assert ours is None, "a state that does not fit was loaded"
    for part in ("4 keys do not fit", "unknown: stages.1.blocks.9.norm1.weight", "missing: stages.2.norm.bias",
                 "missing: patch_embed.proj.bias", "misshapen: stages.3.norm.weight", "[256] here", "[7] in the file"):
        assert part in message, f"'{part}' is not in the error:\n{message}"
    program.load(timm.create_model("pvt_v2_b0").state_dict())
    message, ours = program.run("pvt_v2_b0", torch.randn(1, 3, 64, 100))
    assert ours is None and "multiples of 32, got 64 x 100" in message, message


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True, help="the program examples/features")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = Program(arguments.features, pathlib.Path(folder))
        check_names(program)
        check_errors(program)
        failures = check_levels(program)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
