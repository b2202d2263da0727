"""What a GPU's compiler and the real CuPy say, without a GPU.

NVRTC compiles for architectures that are not there, and CuPy can be imported without a driver: ``python -m
pip install cupy-cuda13x nvidia-cuda-nvrtc`` is enough. Where they are missing, most of these tests are
skipped.
"""

import ast
import re
from pathlib import Path
from types import ModuleType

import pytest

import scratchnet
from scratchnet.plans.cuda.launch import compiling
from tests.fakes import cuda_emulator, cupy_stand_in

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"]  # Turing to consumer Blackwell
CUPYS = ("-ftz=true", "--device-as-default-execution-space")  # which it adds to ours
SOURCES = sorted(path.stem for path in compiling.FOLDER.glob("*.cu"))
PACKAGE = Path(scratchnet.__file__).parent
WRAPPERS = Path(compiling.__file__).parent


def launches(name):
    """Return the kernels that ``launch/NAME.py`` launches, all of them of ``kernels/NAME.cu``."""
    text = (WRAPPERS / f"{name}.py").read_text(encoding="utf-8")
    found = re.findall(r'\blaunch(?:_rows)?\(\s*"(\w+)",\s*(?:"(\w+)"|name)', text)
    assert {file for file, _ in found} == {name}
    # Where the name is chosen before: name = "this" if ... else "that".
    chosen = re.findall(r'\bname = "(\w+)" if .* else "(\w+)"', text)
    return {kernel for _, kernel in found if kernel} | {kernel for pair in chosen for kernel in pair}


def variants(name):
    """Return the macros with which a launch may compile a file."""
    text = compiling.FOLDER.joinpath(f"{name}.cu").read_text(encoding="utf-8")
    wide = ["-DWIDE=1", "-DWIDE=4"] if re.search(r"\b(WIDE|Pack)\b", text) else ["-DWIDE=1"]
    operands = [(), ("-DBF16",)] if re.search(r"\boperand\b", text) else [()]
    return [(w, *o) for w in wide for o in operands]


@pytest.mark.parametrize("name", SOURCES)
def test_every_cuda_kernel_is_launched_from_the_file_of_its_name(name):
    written = {kernel for kernel, _ in cuda_emulator.KERNEL.findall(compiling.source(name))}
    assert written == launches(name)


@pytest.mark.parametrize("name", SOURCES)
def test_every_cuda_kernel_has_a_test(name):
    tests = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("launch/test_*.py")
    )
    functions = [
        node.name
        for node in ast.parse((WRAPPERS / f"{name}.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and re.search(r" launch(_rows)?\(", ast.unparse(node))
    ]
    assert functions
    for function in functions:
        assert re.search(rf"\b(?<!def ){function}\(", tests), function


def test_sources_hold_their_headers_and_name_their_lines():
    text = compiling.source("mask")
    assert "#include" not in text
    lines = text.splitlines()
    assert lines[0] == '#line 1 "mask.cu"' and '#line 1 "sums.cuh"' in lines
    after = max(i for i, line in enumerate(lines) if line.startswith("#line"))
    number = int(lines[after].split()[1])
    original = compiling.FOLDER.joinpath("mask.cu").read_text(encoding="utf-8").splitlines()
    assert lines[after + 1 :] == original[number - 1 :]


@pytest.fixture(scope="module")
def cupy():
    """The real one."""
    return pytest.importorskip(
        "cupy", reason="CuPy is not installed: pip install cupy-cuda13x nvidia-cuda-nvrtc"
    )


@pytest.fixture(scope="module")
def nvrtc(cupy):
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC cannot be loaded ({error}): pip install nvidia-cuda-nvrtc")
    return nvrtc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", SOURCES)
def test_nvrtc_compiles_every_cuda_source(nvrtc, name, architecture):
    for macros in variants(name):
        program = nvrtc.createProgram(compiling.source(name), f"{name}.cu", (), ())
        try:
            nvrtc.compileProgram(program, (f"-arch={architecture}", *compiling.OPTIONS, *macros, *CUPYS))
        except nvrtc.NVRTCError:
            pytest.fail(f"{name}.cu {macros}:\n{nvrtc.getProgramLog(program)}")
        assert nvrtc.getProgramLog(program).strip("\0 \n") == "", "a warning"
        binary = nvrtc.getCUBIN(program)
        for kernel, _ in cuda_emulator.KERNEL.findall(compiling.source(name)):
            assert f".text.{kernel}".encode() in binary
        nvrtc.destroyProgram(program)


def test_cupy_still_adds_these_options(cupy):
    text = Path(cupy.cuda.compiler.__file__).read_text(encoding="utf-8")
    assert all(f"options += ('{option}',)" in text for option in CUPYS)


@pytest.mark.parametrize("name", [name for name in SOURCES if len(variants(name)) > 1])
def test_packs_are_moved_whole(nvrtc, name):
    """In one access of 16 bytes, as the compiler's assembly says, and never by way of local memory."""
    program = nvrtc.createProgram(compiling.source(name), f"{name}.cu", (), ())
    nvrtc.compileProgram(program, ("-arch=compute_80", *compiling.OPTIONS, "-DWIDE=4", *CUPYS))
    assembly = nvrtc.getPTX(program)
    assembly = assembly.decode() if isinstance(assembly, bytes) else assembly
    for entry in assembly.split(".visible .entry ")[1:]:
        kernel = entry[: entry.index("(")]
        if kernel not in ("norm_finish", "norm_fold"):  # these work on a number for each channel
            assert re.search(r"ld\.global(\.nc)?\.v4\.f32", entry), kernel
        assert not re.search(r"\b(ld|st)\.local", entry), kernel


def test_pixels_are_found_by_divisions_of_32_bits(nvrtc):
    """One of 64 bits takes as long as many reads. (Once for each thread it does no harm.)"""
    once = {"unpool": 1, "norm_backward_sums_pool": 1}
    seen = set()
    for name in ("conv", "epilogue", "mask", "norm"):
        program = nvrtc.createProgram(compiling.source(name), f"{name}.cu", (), ())
        nvrtc.compileProgram(program, ("-arch=compute_80", *compiling.OPTIONS, "-DWIDE=4", *CUPYS))
        assembly = nvrtc.getPTX(program)
        assembly = assembly.decode() if isinstance(assembly, bytes) else assembly
        for entry in assembly.split(".visible .entry ")[1:]:
            kernel = entry[: entry.index("(")]
            if re.search(r"im2col|col2im|pool", kernel):
                seen.add(kernel)
                found = re.findall(r"\b(?:div|rem)\.[su]64", entry)
                assert len(found) <= once.get(kernel, 0), kernel
    assert len(seen) == 6


def test_nvrtc_refuses_what_is_wrong(nvrtc):
    """Otherwise the tests above would prove nothing."""
    text = compiling.source("conv").replace("image[", "missing[")
    program = nvrtc.createProgram(text, "conv.cu", (), ())
    with pytest.raises(nvrtc.NVRTCError):
        nvrtc.compileProgram(program, ("-arch=sm_90", *compiling.OPTIONS))
    log = nvrtc.getProgramLog(program)
    line = next(i for i, line in enumerate(original("conv"), 1) if "image[" in line)
    assert f"conv.cu({line}): error" in log and "missing" in log


def original(name):
    return compiling.FOLDER.joinpath(f"{name}.cu").read_text(encoding="utf-8").splitlines()


# Names of CuPy


def chain(node):
    """Return the names of ``a.b.c`` as a list; ``array_module(x)`` counts as xp. Anything else has none."""
    if isinstance(node, ast.Attribute):
        before = chain(node.value)
        return [*before, node.attr] if before else []
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "array_module":
        return ["xp"]
    return [node.id] if isinstance(node, ast.Name) else []


def chains(tree):
    """Yield every chain of names within CuPy, as ["cuda", "Stream"], as far as a source tells."""
    nodes = list(ast.walk(tree))
    aliases = {}  # runtime = cupy.cuda.runtime
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and chain(node.value):
            aliases[node.targets[0].id] = chain(node.value)
    parts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if not isinstance(node, ast.Attribute) or id(node) in parts:
            continue
        names = chain(node)
        names = aliases.get(names[0], names[:1]) + names[1:] if names else []
        start = next((i for i, name in enumerate(names) if name in ("cupy", "xp")), len(names))
        if names[start + 1 :]:
            yield names[start + 1 :]


def used_names():
    """Return the chains that scratchnet uses, with where."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for names in chains(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(".".join(names), str(path.relative_to(PACKAGE)))
    return found


def is_there(module, names):
    """Tell whether a chain of names is there; what follows a function or a number is not looked at."""
    for name in names:
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
        if not isinstance(module, (type, ModuleType)):
            break
    return True


def test_names_of_cupy_are_found_in_a_source():
    tree = ast.parse(
        "cupy.cuda.Stream(); self.xp.zeros(3); array_module(x).exp(y).sum(); np.ones(2); x.xp\n"
        "runtime = cupy.cuda.runtime\nruntime.getDevice(); np.sum(cupy.pi)"
    )
    found = sorted(".".join(c) for c in chains(tree))
    assert found == ["cuda.Stream", "cuda.runtime", "cuda.runtime.getDevice", "exp", "pi", "zeros"]


def test_names_that_are_not_there_are_found():
    assert is_there(ast, ["NodeVisitor", "visit"]) and not is_there(ast, ["NodeVisitor", "visitor"])


def test_every_name_that_scratchnet_uses_is_in_the_real_cupy(cupy):
    used = used_names()
    assert {"RawModule", "exp", "lib.stride_tricks.as_strided"} <= set(used)
    assert not {name: where for name, where in used.items() if not is_there(cupy, name.split("."))}


def test_every_name_of_the_stand_in_is_in_the_real_cupy(cupy):
    ours = cupy_stand_in.cupy
    assert not [name for name in vars(ours) if not name.startswith("__") and not hasattr(cupy, name)]
    public = [name for name in vars(cupy_stand_in.ndarray) if not name.startswith("_")]
    assert not [name for name in public if not hasattr(cupy.ndarray, name)]
    assert not [name for name in vars(ours.cuda) if not name.startswith("_") and not hasattr(cupy.cuda, name)]
